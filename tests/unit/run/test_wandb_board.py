"""Metrics on Weights & Biases, with a small package of its name in the place of the real one."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minidist.config import DistillConfig
from minidist.config.changes import difference
from minidist.config.load import dump
from minidist.config.run import WandbConfig
from minidist.errors import ConfigError
from minidist.preflight.checks import check_files
from minidist.run.directory import RunDirectory
from minidist.run.wandb_board import WandbBoard, check_wandb
from minidist.stages import StageRun
from minidist.stages.watch import make_recorder
from tests.support.config import TREES

PACKAGE = """
import os

calls = []

class Error(Exception): ...

class Settings:
    def __init__(self, **settings):
        self.settings = settings

class Run:
    def define_metric(self, name, step_metric):
        calls.append(("define_metric", name, step_metric))
    def log(self, values):
        calls.append(("log", values))
    def finish(self):
        calls.append(("finish",))

def init(**options):
    if options["project"] == "refused":
        raise Error("403: key " + os.environ["WANDB_API_KEY"] + "\\n has no access")
    calls.append(("init", options | {"settings": options["settings"].settings}))
    return Run()
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, on the path of this process, and no account on this machine."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    sys.modules.pop("wandb", None)
    yield importlib.import_module("wandb")
    sys.modules.pop("wandb", None)


def config(directory: Path, **settings: Any) -> DistillConfig:
    run = {"directory": str(directory), "steps": 2, "tensorboard": False, "wandb": {"project": "distillation"} | settings}
    return DistillConfig.model_validate(TREES["distill"] | {"run": run})


def record(directory: Path, **settings: Any) -> None:
    """Two metrics of a run as its stage records them."""
    directory.mkdir(exist_ok=True)
    made = config(directory, **settings)
    recorder = make_recorder(StageRun(made, None, RunDirectory(made)), {})
    recorder.write(-1, {"evaluation/accuracy": 0.25})
    recorder.step(0, {"loss/nats_per_token": 1.5})
    recorder.close()


def test_a_run_is_sent_beside_its_files(wandb: Any, tmp_path: Path) -> None:
    record(tmp_path / "gkd", tags=["sort"], group="seeds")
    (_, options), defined, *sent = wandb.calls
    assert (options["project"], options["name"], options["group"], options["tags"]) == (
        "distillation",
        "gkd",
        "seeds",
        ["sort"],
    )
    assert options["config"]["objective"]["type"] == "reverse_kl" and options["resume"] == "allow"
    assert options["settings"] == {"console": "off"} and options["dir"] == str(tmp_path / "gkd")
    assert defined == ("define_metric", "*", "step")
    assert sent == [
        ("log", {"step": -1, "evaluation/accuracy": 0.25}),
        ("log", {"step": 0, "loss/nats_per_token": 1.5}),
        ("finish",),
    ]
    assert len((tmp_path / "gkd" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_resumed_run_goes_on_in_the_same_place(wandb: Any, tmp_path: Path) -> None:
    for _ in range(2):
        record(tmp_path / "run")
    record(tmp_path / "other")
    ids = [call[1]["id"] for call in wandb.calls if call[0] == "init"]
    assert ids[0] == ids[1] != ids[2]


def test_no_secret_is_sent_and_no_key_is_shown(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"teacher": {"url": "http://me:pw@host/", "api_key": "k-9"}}
    WandbBoard(WandbConfig(project="p"), tmp_path, settings)
    assert wandb.calls[0][1]["config"] == {"teacher": {"url": "http://...@host/", "api_key": "(not shown)"}}
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    with pytest.raises(ConfigError, match=r"refuses the run: 403: key \(not shown\) has no access; set run.wandb.mode=offline"):
        WandbBoard(WandbConfig(project="refused"), tmp_path, {})


def test_a_missing_package_is_one_sentence_at_check(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"run.wandb needs the package wandb, which is not installed; pip install wandb, or"):
        check_files(config(tmp_path / "run"), {}, [])


def test_an_account_is_needed_online_alone(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"finds no account: set WANDB_API_KEY or give `wandb login` first; or set"):
        check_wandb(WandbConfig(project="p"))
    check_wandb(WandbConfig(project="p", mode="offline"))
    check_wandb(None)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password k-9\n")
    check_wandb(WandbConfig(project="p"))
    (tmp_path / ".netrc").write_text("machine \udc80".encode("utf-8", "surrogateescape").decode("latin-1"))
    monkeypatch.setenv("WANDB_API_KEY", "k-9")
    check_wandb(WandbConfig(project="p"))


def test_it_may_be_switched_on_when_a_run_resumes(tmp_path: Path) -> None:
    made = config(tmp_path)
    without = json.loads(json.dumps(dump(made)))
    without["run"]["wandb"] = None
    assert difference(without, made) is None
