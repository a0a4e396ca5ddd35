"""The room of a run on its disk, and the refusal of a run that cannot write one checkpoint."""

from pathlib import Path
from typing import Any

import pytest

from minidist.cluster.machine import Space
from minidist.config import DistillConfig
from minidist.errors import ConfigError
from minidist.models.shape import Shape
from minidist.preflight import space
from minidist.preflight.space import space_lines
from tests.support.config import TREES

GIB = 2**30
SHAPE = Shape(GIB // 4, GIB // 4, 1, 1, 1, 1, 1, 1, 1)
"""A student of 1 GiB in float32: its checkpoint has 1 GiB of weights and 3 GiB of state."""


def lines(path: Path, free: float, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> list[str]:
    monkeypatch.setattr(space, "disk", lambda path: Space(100.0, free))
    tree = TREES["distill"] | {"run": {"directory": str(path), "steps": 38, "checkpoints_kept": 3}} | sections
    return space_lines(DistillConfig.model_validate(tree), SHAPE)


def test_checkpoints_final_and_rollouts_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old checkpoints and the new one, 16 GiB; final/, 1 GiB; 3 files of 64 answers of 128 tokens."""
    (line,) = lines(tmp_path, 50.0, monkeypatch, rollout={"prompts_per_step": 64, "max_new_tokens": 128})
    assert "4 checkpoints 16.00 GiB, final 1.00 GiB, rollouts 0.00 GiB" in line and line.startswith("disk: up to 17.00 GiB")
    assert "WARNING" not in line and line.endswith("where 50.00 GiB are free")


def test_a_disk_that_will_be_full_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = lines(tmp_path, 5.0, monkeypatch)
    assert line.startswith("WARNING disk: up to 17.00 GiB") and line.endswith("lower run.checkpoints_kept")
    (line,) = lines(tmp_path, 5.0, monkeypatch, run={"directory": str(tmp_path), "steps": 38})
    assert line.startswith("WARNING disk: up to 13.00 GiB") and line.endswith("free space")


def test_a_disk_without_room_for_a_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"a checkpoint of 4.00 GiB does not fit in .*, where 3.90 GiB are free; free space"):
        lines(tmp_path, 3.9, monkeypatch)
    lines(tmp_path, 3.9, monkeypatch, learner={"optimizer": {"type": "sgd"}})  # without moments, 2 GiB
    old = tmp_path / "checkpoints" / "step_000001"
    old.mkdir(parents=True)
    with (old / "model.safetensors").open("wb") as file:
        file.truncate(GIB)  # room that the next checkpoint takes over
    lines(tmp_path, 3.9, monkeypatch)
