"""Checkpoints: whole or not at all, checked before they are read, the newest few kept."""

import asyncio
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import minidist.learners.state as module
from minidist.errors import RunDirectoryError
from minidist.learners.state import StateReader, StateWriter
from minidist.run.checkpoint import Checkpoint, Checkpoints


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was forced to the disk, in order; not done, since it is slow."""
    paths: list[Path] = []

    def record(path: Path) -> None:
        paths.append(path.relative_to(path.parents[1]))

    monkeypatch.setattr("minidist.run.checkpoint.sync", record)
    monkeypatch.setattr("minidist.run.files.sync", record)
    return paths


class FileLearner:
    """Writes real files: a folder beside the model's, and a training state of the step it is at."""

    def __init__(self, fails_in: str = "") -> None:
        self.step, self.fails_in = 0, fails_in

    async def save(self, path: Path) -> None:
        (path / "model.safetensors").write_bytes(bytes(range(200)) + bytes([self.step % 256]))
        (path / "additional_chat_templates").mkdir()
        (path / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
        self._fail("save")

    async def save_state(self, path: Path) -> None:
        writer = StateWriter(path, self.step)
        writer.add("layer", {"weight": torch.full((3,), float(self.step))})
        writer.flush()
        self._fail("save_state")

    def _fail(self, verb: str) -> None:
        if self.fails_in == verb:
            raise OSError("disk full")


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


def test_written_and_read(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", 4, metrics_bytes=17, evaluations=[(2, {"kl": 0.5})])
    found = newest(tmp_path / "a" / "b")
    assert (found.step, found.path.name) == (4, "step_000004")
    assert found.state == {"step": 4, "metrics_bytes": 17, "evaluations": [[2, {"kl": 0.5}]]}
    assert StateReader(found.path).tensors("layer")["weight"].tolist() == [4.0] * 3
    assert (found.path / "additional_chat_templates" / "tool.jinja").is_file()
    assert Checkpoints(tmp_path / "none", 1).newest() is None
    (tmp_path / "empty").mkdir()
    assert Checkpoints(tmp_path / "empty", 1).newest() is None


@pytest.mark.parametrize("place", ["save", "save_state", "seal", "rename"])
def test_a_crash_leaves_the_older_one_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def crash(*_: Any) -> None:
        raise OSError("disk full")

    write(tmp_path, 1, kept=1)
    with monkeypatch.context() as patch:
        if place == "seal":
            patch.setattr("minidist.run.checkpoint._seal", crash)
        if place == "rename":
            patch.setattr(Path, "rename", crash)
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path, 2, kept=1, fails_in=place)
    assert newest(tmp_path).step == 1
    assert names(tmp_path) == [".step_000002", "step_000001"]
    write(tmp_path, 3, kept=1)  # and the next one clears away what was left half written, whatever its step
    assert names(tmp_path) == ["step_000003"]


FILES = ["model.safetensors", "training/00001.safetensors", "state.json", "sums.json", "additional_chat_templates/tool.jinja"]


@pytest.mark.parametrize("how", ["flipped", "missing", "empty", "cut"])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_seen_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    monkeypatch.setattr(logging.getLogger("minidist"), "propagate", True)  # whatever log another test has started
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
def test_the_newest_few_stay(tmp_path: Path, kept: int) -> None:
    write(tmp_path, 5, 10, 15, 20, kept=kept)
    assert names(tmp_path) == [f"step_{step:06d}" for step in (10, 15, 20)[-kept:]]


def test_steps_are_numbers(tmp_path: Path) -> None:
    write(tmp_path, 999_998, 999_999, 1_000_000, kept=2)
    assert newest(tmp_path).step == 1_000_000 and names(tmp_path) == ["step_1000000", "step_999999"]
    write(tmp_path, 1_000_001, kept=2)
    assert newest(tmp_path).step == 1_000_001 and names(tmp_path) == ["step_1000000", "step_1000001"]


def test_a_copy_that_somebody_made_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "step_000001.bak").mkdir()
    write(tmp_path, 2, 3, kept=1)
    assert names(tmp_path) == ["step_000001.bak", "step_000003"] and newest(tmp_path).step == 3


def test_the_same_step_is_written_again(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    damage(tmp_path / "step_000003" / "model.safetensors", "flipped")
    write(tmp_path, 3, again=True)
    assert newest(tmp_path).state["again"] is True
    write(tmp_path, 3, third=True)
    assert newest(tmp_path).state == {"step": 3, "third": True}
    assert names(tmp_path) == ["step_000001", "step_000002", "step_000003"]


def test_damaged_ones_that_were_passed_over_do_not_outlive_new_ones(tmp_path: Path) -> None:
    """Counted among the newest they would push out the only whole ones."""
    write(tmp_path, 10, 20, 30, kept=3)
    for step in (20, 30):
        damage(tmp_path / f"step_0000{step}" / "state.json", "empty")
    assert newest(tmp_path).step == 10
    write(tmp_path, 15, kept=2)
    assert names(tmp_path) == ["step_000010", "step_000015"] and newest(tmp_path).step == 15


def test_everything_is_on_disk_before_the_name_is_and_the_name_before_older_ones_go(
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


def test_sums_are_of_every_file(tmp_path: Path) -> None:
    write(tmp_path, 1)
    sums = json.loads((tmp_path / "step_000001" / "sums.json").read_text())
    assert sorted(sums) == sorted(set(FILES) - {"sums.json"})


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(4, 3).to(dtype) for name in ("weight", "exp_avg", "exp_avg_sq")}


@pytest.mark.parametrize(("limit", "files"), [(1 << 30, 1), (145, 2), (144, 4), (1, 4)])
def test_state_in_files_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, files: int) -> None:
    monkeypatch.setattr(module, "_FILE_BYTES", limit)
    writer = StateWriter(tmp_path, 7)
    given = {"model.layers.0.weight": tensors(0), "lm_head": tensors(1), "odd|name": tensors(2), "norm": tensors(3)}
    for name, parts in given.items():
        writer.add(name, parts)
    writer.flush()
    assert names(tmp_path) == ["training"], "vLLM would take another safetensors file for a part of the model"
    assert names(tmp_path / "training") == [f"{number:05d}.safetensors" for number in range(1, files + 1)]
    reader = StateReader(tmp_path)
    assert reader.steps == 7
    for name, parts in given.items():
        found = reader.tensors(name)
        assert found.keys() == parts.keys() and all(torch.equal(found[part], parts[part]) for part in parts)


def test_state_keeps_precision_and_is_a_copy(tmp_path: Path) -> None:
    given = tensors(0, torch.bfloat16)
    held = {name: tensor.clone() for name, tensor in given.items()}
    writer = StateWriter(tmp_path, 0)
    writer.add("layer", given | {"weight": given["weight"].T})
    for tensor in given.values():
        tensor.zero_()
    writer.flush()
    found = StateReader(tmp_path).tensors("layer")
    assert found["weight"].dtype == torch.bfloat16 and torch.equal(found["weight"], held["weight"].T)
    assert torch.equal(found["exp_avg"], held["exp_avg"])


def test_a_checkpoint_without_training_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"has no training state in training/[\s\S]*set run\.overwrite=true"):
        StateReader(tmp_path)


def test_parameter_that_was_not_trained_is_named(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path, 0)
    writer.add("layer.weight", tensors(0))
    writer.flush()
    for name in ("layer", "weight", "layer.weight2"):
        with pytest.raises(KeyError, match=name):
            StateReader(tmp_path).tensors(name)
