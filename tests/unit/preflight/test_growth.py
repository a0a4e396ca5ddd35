"""What the plan says of a run that goes on with more steps."""

import asyncio
from pathlib import Path
from typing import Any

from minidist.config import DistillConfig
from minidist.preflight.growth import growth_lines
from minidist.run.directory import RunDirectory
from tests.support.config import TREES


def run_of(path: Path, steps: int, **sections: Any) -> DistillConfig:
    return DistillConfig.model_validate(TREES["distill"] | {"run": {"directory": str(path), "steps": steps}} | sections)


class Files:
    """A learner whose checkpoint is one file."""

    async def save(self, path: Path) -> dict[str, str]:
        (path / "model.safetensors").write_text("weights")
        return {}

    async def save_state(self, path: Path) -> dict[str, str]:
        return {}


def finished(config: DistillConfig) -> None:
    directory = RunDirectory(config)
    assert directory.start() is None
    (directory.path / "metrics.jsonl").touch()
    asyncio.run(directory.checkpoints.write(config.run.steps, Files(), {"metrics_bytes": 0}))  # type: ignore[arg-type]
    directory.finish({"steps": config.run.steps})


def test_a_schedule_that_ends_with_the_run_has_its_two_rates(tmp_path: Path) -> None:
    """Linear to zero over 10 steps, then over 40: three quarters of 8e-3 are left at step 10."""
    learner = {"optimizer": {"schedule": "linear", "lr": 8e-3}}
    finished(run_of(tmp_path, 10, learner=learner))
    found, rates, ends = growth_lines(run_of(tmp_path, 40, learner=learner))
    assert found == "run.steps was 10 and is now 40: the run goes on from its checkpoint after 10 steps"
    assert rates == "the learning rate goes on at 0.006; with run.steps 10 it was 0 there"
    assert ends.startswith("learner.optimizer.schedule linear ends with the run, now at step 40;") and ends.endswith("step 10")


def test_a_constant_rate_has_one_line_and_the_same_steps_none(tmp_path: Path) -> None:
    finished(run_of(tmp_path, 10))
    assert len(growth_lines(run_of(tmp_path, 40))) == 1
    assert growth_lines(run_of(tmp_path, 10)) == growth_lines(run_of(tmp_path / "new", 10)) == []


def test_replay_and_the_anchor_of_a_prompt_end_with_the_run_too(tmp_path: Path) -> None:
    shares = {"student": 0.5, "dataset": 0.5, "per": "step"}
    data = {"prompts": {"path": "rows.jsonl", "prompt": "{{ q }}", "answer": "{{ a }}"}}
    replay = {"prefix": shares | {"replay": {"growth": 0}}, "data": data}
    prompted = {"teacher": {"model": "t", "placement": "learner", "prompt": {}}}
    for name, sections, setting in (
        ("a", replay, "prefix.replay.schedule decreasing"),
        ("b", prompted, "teacher.prompt.anchor"),
    ):
        finished(run_of(tmp_path / name, 10, **sections))
        assert setting in growth_lines(run_of(tmp_path / name, 40, **sections))[1]
