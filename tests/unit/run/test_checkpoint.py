"""Checkpoints: whole or not at all, checked before they are read, the newest few kept."""

import asyncio
import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from minidist.errors import DiskFullError, RunDirectoryError
from minidist.learners.state import Piece, StateReader, save_state
from minidist.run.checkpoint import Checkpoint, Checkpoints
from minidist.run.files import sha256


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths forced to the disk, in order; the slow call itself is left out."""
    paths: list[Path] = []

    def record(path: Path) -> None:
        paths.append(path.relative_to(path.parents[1]))

    monkeypatch.setattr("minidist.run.checkpoint.sync", record)
    monkeypatch.setattr("minidist.run.files.sync", record)
    return paths


class FileLearner:
    """Writes real files: a folder beside the model's, and a training state of the step it is at."""

    def __init__(self, fails_in: str = "", number: int = 0) -> None:
        self.step, self.fails_in, self.number = 0, fails_in, number

    async def save(self, path: Path) -> dict[str, str]:
        (path / "model.safetensors").write_bytes(bytes(range(200)) + bytes([self.step % 256]))
        (path / "additional_chat_templates").mkdir()
        (path / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
        self._fail("save")
        return {}

    async def save_state(self, path: Path) -> dict[str, str]:
        sums = save_state(path, self.step, [Piece.whole("layer", "weight", torch.full((3,), float(self.step)))])
        self._fail("save_state")
        return sums

    def _fail(self, verb: str) -> None:
        if self.fails_in == verb:
            raise OSError(self.number, "disk full") if self.number else OSError("disk full")


def write(folder: Path, *steps: int, kept: int = 3, fails_in: str = "", **state: Any) -> None:
    learner = FileLearner(fails_in)
    for step in steps:
        learner.step = step
        asyncio.run(Checkpoints(folder, kept).write(step, learner, state))  # type: ignore[arg-type]


def newest(folder: Path) -> Checkpoint:
    found = Checkpoints(folder, 3).newest()
    assert found is not None and StateReader(found.path).steps == found.step
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", 4, metrics_bytes=17, evaluations=[(2, {"kl": 0.5})])
    found = newest(tmp_path / "a" / "b")
    assert (found.step, found.path.name) == (4, "step_000004")
    assert found.state == {"step": 4, "metrics_bytes": 17, "evaluations": [[2, {"kl": 0.5}]]}
    assert StateReader(found.path).tensors("layer")["weight"].tolist() == [4.0] * 3
    assert (found.path / "additional_chat_templates" / "tool.jinja").is_file()
    assert Checkpoints(tmp_path / "none", 1).newest() is None
    (tmp_path / "empty").mkdir()
    assert Checkpoints(tmp_path / "empty", 1).newest() is None


@pytest.mark.parametrize("verb", ["save", "save_state", "seal", "rename"])
def test_a_crash_leaves_the_older_checkpoint_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    def crash(*_: Any) -> None:
        raise OSError("disk full")

    write(tmp_path, 1, kept=1)
    with monkeypatch.context() as patch:
        if verb == "seal":
            patch.setattr("minidist.run.checkpoint._seal", crash)
        if verb == "rename":
            patch.setattr(Path, "rename", crash)
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path, 2, kept=1, fails_in=verb)
    assert newest(tmp_path).step == 1
    assert names(tmp_path) == [".step_000002", "step_000001"]
    write(tmp_path, 3, kept=1)  # and the next one clears away what was left half written, whatever its step
    assert names(tmp_path) == ["step_000003"]


def test_files_that_were_summed_while_they_were_written_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def record(file: Path) -> str:
        read.append(file.name)
        return sha256(file)

    monkeypatch.setattr("minidist.run.checkpoint.sha256", record)
    write(tmp_path, 1)
    assert "00001.safetensors" not in read and "state.json" in read
    sums = json.loads((tmp_path / "step_000001" / "sums.json").read_text())
    assert sums["training/00001.safetensors"] == sha256(tmp_path / "step_000001" / "training" / "00001.safetensors")


def test_a_file_that_a_rank_wrote_on_another_machine_is_a_sentence(tmp_path: Path) -> None:
    class Elsewhere(FileLearner):
        async def save(self, path: Path) -> dict[str, str]:
            return await super().save(path) | {"model-00002-of-00002.safetensors": "0"}

    with pytest.raises(
        RunDirectoryError, match=r"has written model-00002-of-00002.safetensors .*; set run.directory to a file"
    ):
        asyncio.run(Checkpoints(tmp_path, 1).write(1, Elsewhere(), {}))  # type: ignore[arg-type]


FILES = ["model.safetensors", "training/00001.safetensors", "state.json", "sums.json", "additional_chat_templates/tool.jinja"]


@pytest.mark.parametrize("how", ["flipped", "missing", "empty", "cut"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoints_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    monkeypatch.setattr(logging.getLogger("minidist"), "propagate", True)  # in case another test has started a log
    write(tmp_path, 1, 2)
    damage(tmp_path / "step_000002" / name, how)
    with caplog.at_level(logging.WARNING, logger="minidist"):
        assert newest(tmp_path).step == 1
    assert "step_000002 is damaged" in caplog.text and Path(name).name in caplog.text
    damage(tmp_path / "step_000001" / name, how)
    with pytest.raises(RunDirectoryError, match=r"every checkpoint under .* is damaged; set run.overwrite=true"):
        Checkpoints(tmp_path, 3).newest()


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
        return
    data[len(data) // 2] ^= 0x80  # which is no UTF-8 either
    file.write_bytes({"flipped": bytes(data), "empty": b"", "cut": bytes(data[:-3])}[how])


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_newest_checkpoints_stay(tmp_path: Path, kept: int) -> None:
    write(tmp_path, 5, 10, 15, 20, kept=kept)
    assert names(tmp_path) == [f"step_{step:06d}" for step in (10, 15, 20)[-kept:]]


def test_checkpoints_are_ordered_by_number_of_steps(tmp_path: Path) -> None:
    write(tmp_path, 999_998, 999_999, 1_000_000, kept=2)
    assert newest(tmp_path).step == 1_000_000 and names(tmp_path) == ["step_1000000", "step_999999"]
    write(tmp_path, 1_000_001, kept=2)
    assert newest(tmp_path).step == 1_000_001 and names(tmp_path) == ["step_1000000", "step_1000001"]


def test_other_directories_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "step_000001.bak").mkdir()
    write(tmp_path, 2, 3, kept=1)
    assert names(tmp_path) == ["step_000001.bak", "step_000003"] and newest(tmp_path).step == 3


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    damage(tmp_path / "step_000003" / "model.safetensors", "flipped")
    write(tmp_path, 3, again=True)
    assert newest(tmp_path).state["again"] is True
    write(tmp_path, 3, third=True)
    assert newest(tmp_path).state == {"step": 3, "third": True}
    assert names(tmp_path) == ["step_000001", "step_000002", "step_000003"]


def test_skipped_checkpoints_are_deleted_by_later_ones(tmp_path: Path) -> None:
    """If they counted among the newest, the only whole ones would be deleted."""
    write(tmp_path, 10, 20, 30, kept=3)
    for step in (20, 30):
        damage(tmp_path / f"step_0000{step}" / "state.json", "empty")
    assert newest(tmp_path).step == 10
    write(tmp_path, 15, kept=2)
    assert names(tmp_path) == ["step_000010", "step_000015"] and newest(tmp_path).step == 15


def test_content_is_on_disk_before_the_name_and_the_name_before_older_checkpoints_are_deleted(
    tmp_path: Path, synced: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, kept=1)
    synced.clear()
    seen: list[list[str]] = []
    rename, rmtree = Path.rename, shutil.rmtree
    monkeypatch.setattr(Path, "rename", lambda *paths: (seen.append([path.name for path in synced]), rename(*paths)))
    monkeypatch.setattr(shutil, "rmtree", lambda path: (seen.append([path.name for path in synced]), rmtree(path)))
    write(tmp_path, 2, kept=1)
    named, deleted = seen
    assert sorted(named) == sorted(
        [*(Path(name).name for name in FILES), "additional_chat_templates", "training", ".step_000002"]
    )
    assert deleted == [*named, tmp_path.name]


def test_every_file_has_its_sum(tmp_path: Path) -> None:
    write(tmp_path, 1)
    sums = json.loads((tmp_path / "step_000001" / "sums.json").read_text())
    assert sorted(sums) == sorted(set(FILES) - {"sums.json"})


@pytest.mark.parametrize("verb", ["save", "save_state"])
def test_a_full_disk_leaves_the_older_checkpoint_and_no_half_one(tmp_path: Path, verb: str) -> None:
    write(tmp_path, 1, kept=1)
    learner: Any = FileLearner(verb, errno.ENOSPC)
    with pytest.raises(DiskFullError, match=r"step_000002 could not be written: No space left on device; free space"):
        asyncio.run(Checkpoints(tmp_path, 1).write(2, learner, {}))
    assert names(tmp_path) == ["step_000001"] and newest(tmp_path).step == 1


@pytest.mark.parametrize("sums", ["[]", "null", "{}", '{"a": 1}', '{"../x": "y"}', '{"a\\u0000": "y"}', "[" * 100_000])
def test_sums_of_another_shape_are_damage(tmp_path: Path, sums: str) -> None:
    write(tmp_path, 1, 2)
    (tmp_path / "step_000002" / "sums.json").write_text(sums)
    assert newest(tmp_path).step == 1


@pytest.mark.parametrize("name", ["state.json", "training/00001.safetensors", "model.safetensors"])
def test_a_file_that_is_read_and_has_no_sum_is_damage(tmp_path: Path, name: str) -> None:
    write(tmp_path, 1, 2)
    file = tmp_path / "step_000002" / "sums.json"
    sums = json.loads(file.read_text())
    del sums[name]
    file.write_text(json.dumps(sums))
    assert newest(tmp_path).step == 1


def test_links_and_files_in_place_of_checkpoints_are_skipped_and_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "checkpoints"
    write(folder, 1)
    (folder / "step_000002").symlink_to(tmp_path / "elsewhere")
    (folder / "step_000003").write_text("a file")
    (folder / ".step_000004").symlink_to(tmp_path / "nothing")
    assert newest(folder).step == 1
    write(folder, 2, kept=1)
    assert (
        names(folder) == ["step_000002"] and (tmp_path / "elsewhere").is_dir() and not list((tmp_path / "elsewhere").iterdir())
    )


def test_weights_that_a_learner_has_written_elsewhere_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner on another node that shares no file system."""

    async def save(self: FileLearner, path: Path) -> dict[str, str]:
        return {}

    monkeypatch.setattr(FileLearner, "save", save)
    with pytest.raises(RunDirectoryError, match=r"are not there on this machine; set run\.directory to .* all nodes share"):
        write(tmp_path, 1)
    assert Checkpoints(tmp_path, 3).newest() is None
