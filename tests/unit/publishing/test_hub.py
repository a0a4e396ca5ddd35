"""A finished run goes to the hub where asked, or says how; what forbids it is found before the run. The hub is on loopback."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from minidist.config import SftConfig
from minidist.errors import ConfigError, HubError, RunDirectoryError
from minidist.preflight.plan import plan_sft
from minidist.publishing.ending import deliver, push_run
from tests.support.commands import run as command
from tests.support.hub import Hub, serve_hub
from tests.support.trained import trained_tree

NAME = "team/small"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on loopback, and a token for it in the environment."""
    with serve_hub() as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield served


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return shutil.copytree(trained, tmp_path / "run")


def asking(root: Path, **run: object) -> SftConfig:
    """A configuration that asks for an upload."""
    return SftConfig.model_validate(trained_tree(root, push_to_hub=NAME, **run))


def test_final_is_uploaded_whole_to_a_private_repository(hub: Hub, finished: Path) -> None:
    assert push_run(finished, NAME, private=True) == f"{hub.address}/{NAME}"
    assert hub.created == {NAME: True}
    sent = {name: content for name, content in hub.files[NAME].items() if name != ".gitattributes"}
    assert sent == {file.name: file.read_bytes() for file in (finished / "final").iterdir()}
    assert json.loads((finished / "hub.json").read_text())["repository"] == NAME


def test_a_repository_may_exist_and_be_public(hub: Hub, finished: Path) -> None:
    push_run(finished, NAME, private=False)
    push_run(finished, NAME, private=True)
    assert hub.created == {NAME: False}


def test_a_failed_upload_leaves_the_run_whole_and_says_how_to_repeat_it(hub: Hub, finished: Path) -> None:
    hub.fails = {"/commit/": 403}
    with pytest.raises(HubError, match=rf"is whole, and was not uploaded to {NAME}.*minidist push {finished} {NAME}$"):
        push_run(finished, NAME, private=True)
    hub.fails = {}
    push_run(finished, NAME, private=True)
    assert "model.safetensors" in hub.files[NAME]


def test_a_finished_run_is_uploaded_once(hub: Hub, tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    for _ in range(2):
        deliver(asking(tmp_path))
    assert [path for method, path, _ in hub.requests if "/commit/" in path] == [f"/api/models/{NAME}/commit/main"]


def test_the_same_command_trains_uploads_and_repeats_a_failed_upload(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text(json.dumps(trained_tree(tmp_path, push_to_hub=NAME)))
    hub.fails = {"/commit/": 403}
    failed = command("sft", file)
    assert failed.returncode == 1 and "minidist: " in failed.stderr and "to upload it later: minidist push" in failed.stderr
    assert (tmp_path / "run/summary.json").is_file() and "Traceback" not in failed.stderr
    hub.fails = {}
    again = command("sft", file)
    assert again.returncode == 0 and "is finished already" in again.stderr
    assert {"README.md", "model.safetensors"} <= hub.files[NAME].keys()
    written = "".join(path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert "hf_secret" not in written + failed.stderr + failed.stdout + again.stderr + again.stdout


def test_nothing_is_uploaded_without_being_asked(hub: Hub, tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    deliver(SftConfig.model_validate(trained_tree(tmp_path)))
    assert not hub.requests


def test_a_run_that_can_upload_is_planned(hub: Hub, tmp_path: Path) -> None:
    plan_sft(asking(tmp_path))
    assert ("GET", "/api/whoami-v2", "hf_secret") in hub.requests and not hub.created


def test_a_missing_token_is_found_before_the_run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=rf"run.push_to_hub is {NAME}, and the environment holds no token; export HF_TOKEN"):
        plan_sft(asking(tmp_path))


def test_a_token_that_the_hub_refuses_is_found_before_the_run(hub: Hub, tmp_path: Path) -> None:
    hub.tokens = {"hf_other"}
    with pytest.raises(ConfigError, match="the hub refuses the token in HF_TOKEN") as found:
        plan_sft(asking(tmp_path))
    assert "hf_secret" not in str(found.value)


def test_a_hub_that_cannot_be_reached_is_found_before_the_run(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="cannot be reached"):
        plan_sft(asking(tmp_path))
    hub.fails = {"whoami": 500}
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    with pytest.raises(ConfigError, match=r"the hub answers .*500"):
        plan_sft(asking(tmp_path))


def test_offline_mode_is_found_before_the_run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE forbids connections"):
        plan_sft(asking(tmp_path))
    assert not hub.requests


@pytest.mark.parametrize(
    "name", ["small", "a/b/c", "a/b c", "-a/b", "a/b--c", "a/b..c", "a/b.git", "a/../b", "a/" + "b" * 99, ""]
)
def test_a_name_that_the_hub_does_not_take_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected OWNER/NAME"):
        SftConfig.model_validate(trained_tree(tmp_path, push_to_hub=name))


def test_push_needs_a_finished_run_and_a_name(hub: Hub, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"has no run.push_to_hub; give OWNER/NAME"):
        push_run(finished, None, private=True)
    with pytest.raises(RunDirectoryError, match="no run directory at"):
        push_run(tmp_path / "nowhere", NAME, private=True)
    (finished / "summary.json").unlink()
    with pytest.raises(RunDirectoryError, match="is not finished"):
        push_run(finished, NAME, private=True)
    assert not hub.requests


def test_a_card_that_is_missing_is_written_before_the_upload(hub: Hub, finished: Path) -> None:
    (finished / "final/README.md").unlink()
    push_run(finished, NAME, private=True)
    assert hub.files[NAME]["README.md"].startswith(b"---\n")


def test_the_verb_uploads(hub: Hub, finished: Path) -> None:
    done = command("push", finished, NAME)
    assert done.returncode == 0 and done.stdout.strip() == f"{hub.address}/{NAME}"
    refused = command("push", finished, "no name")
    assert refused.returncode == 2 and "expected OWNER/NAME" in refused.stderr
