"""The copy of a run's directory at an address: what it holds, when it is trusted, and when another run stays as it is."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from minidist.config.run import PlaceConfig
from minidist.errors import RunDirectoryError, StorageError
from minidist.run.mirror import Mirror

AT = "memory://bucket/run"


@pytest.fixture(autouse=True)
def bucket() -> Iterator[Any]:
    """A file system in memory, emptied."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def sent(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are sent."""
    found: list[str] = []
    put = type(bucket).put_file

    def counted(system: Any, source: str, target: str, **options: Any) -> None:
        found.append(target.removeprefix("/bucket/run/"))
        put(system, source, target, **options)

    monkeypatch.setattr(type(bucket), "put_file", counted)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "checkpoints" / "step_000002").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    (run / "checkpoints" / "step_000002" / "state.json").write_text("2")
    (run / ".lock").touch()
    (run / "checkpoints" / ".step_000004").mkdir()
    (run / "checkpoints" / ".step_000004" / "state.json").write_text("unfinished")
    return run


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_run_goes_on_from_its_copy_elsewhere(run: Path, tmp_path: Path) -> None:
    Mirror(AT, run).push()
    other = tmp_path / "other"
    Mirror(AT, other).pull(overwrite=False)
    assert files(other) == {name: text for name, text in files(run).items() if not name.startswith((".", "checkpoints/."))}
    (other / "metrics.jsonl").write_text("more")
    Mirror(AT, other).push()
    third = tmp_path / "third"
    Mirror(AT, third).pull(overwrite=False)
    assert (third / "metrics.jsonl").read_text() == "more"


def test_what_has_not_changed_is_not_sent_again_and_what_is_gone_is_removed(run: Path, bucket: Any, sent: list[str]) -> None:
    mirror = Mirror(AT, run)
    mirror.push()
    assert sorted(sent) == ["checkpoints/step_000002/state.json", "config.json", "metrics.jsonl", "mirror.json"]
    assert sent[-1] == "mirror.json"
    sent.clear()
    (run / "checkpoints" / "step_000002").rename(run / "checkpoints" / "step_000004")
    mirror.push()
    assert sent == ["checkpoints/step_000004/state.json", "mirror.json"]
    held = {name.removeprefix("/bucket/run/") for name in bucket.find("/bucket/run")}
    assert held == {"checkpoints/step_000004/state.json", "config.json", "metrics.jsonl", "mirror.json"}


def test_another_run_is_not_replaced_unless_that_is_asked_for(run: Path, tmp_path: Path) -> None:
    Mirror(AT, run).push()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"other": 1}')
    with pytest.raises(RunDirectoryError, match=r"another run than that of .*/other is at memory://bucket/run; set run.mirror"):
        Mirror(AT, other).pull(overwrite=False)
    Mirror(AT, other).pull(overwrite=True)
    Mirror(AT, other).push()
    third = tmp_path / "third"
    Mirror(AT, third).pull(overwrite=False)
    assert set(files(third)) == {"config.json", "mirror.json"}


def test_a_file_that_is_not_the_one_that_was_sent_is_refused(run: Path, tmp_path: Path, bucket: Any) -> None:
    Mirror(AT, run).push()
    bucket.pipe("/bucket/run/metrics.jsonl", b'{"step": 1}\n')
    with pytest.raises(RunDirectoryError, match=r"metrics.jsonl at memory://bucket/run is not the file that was sent"):
        Mirror(AT, tmp_path / "other").pull(overwrite=False)
    assert not (tmp_path / "other" / "config.json").exists(), "what was fetched is no run"


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_a_copy_writes_nothing_outside_the_directory(name: str, run: Path, tmp_path: Path, bucket: Any) -> None:
    manifest = {"id": "1", "files": {name: "0" * 64}}
    bucket.pipe("/bucket/run/mirror.json", json.dumps(manifest).encode())
    with pytest.raises(RunDirectoryError, match="lists a file outside itself"):
        Mirror(AT, tmp_path / "deep" / "other").pull(overwrite=False)


@pytest.mark.parametrize("text", ["", "[]", '{"id": 1, "files": {}}', '{"files": []}'])
def test_a_manifest_of_another_shape_is_a_sentence(text: str, tmp_path: Path, bucket: Any) -> None:
    bucket.pipe("/bucket/run/mirror.json", text.encode())
    with pytest.raises(RunDirectoryError, match=r"mirror.json .*; at memory://bucket/run; set run.mirror to another address"):
        Mirror(AT, tmp_path / "other").pull(overwrite=False)


def test_a_run_goes_on_while_its_address_cannot_be_written_to(
    run: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no access for s3://key:secret@bucket")

    monkeypatch.setattr(type(bucket), "put_file", refuse)
    monkeypatch.setattr(logging.getLogger("minidist"), "propagate", True)
    Mirror(AT, run).push()
    assert "the copy of the run is not up to date: run.mirror: memory://bucket/run cannot be written" in caplog.text
    assert "secret" not in caplog.text
    with pytest.raises(StorageError, match="give the same command again"):
        Mirror(AT, run).push(last=True)


def test_no_address_is_no_copy(run: Path, sent: list[str]) -> None:
    mirror = Mirror(None, run)
    mirror.pull(overwrite=False)
    mirror.push(last=True)
    mirror.check()
    assert sent == []


def test_addresses_stand_in_their_own_setting() -> None:
    with pytest.raises(ValueError, match=r"set a local or shared one, and run.mirror"):
        PlaceConfig.parse(directory="s3://bucket/run")
    for mirror in ("runs/copy", "s3://key:secret@bucket/run"):
        with pytest.raises(ValueError, match="expected an address without user and password") as caught:
            PlaceConfig.parse(directory="run", mirror=mirror)
        assert "secret" not in str(caught.value)
    with pytest.raises(StorageError, match=r"run.mirror: addresses of s3:// need a package that is missing: Install s3fs"):
        Mirror("s3://bucket/run", Path("run")).check()
