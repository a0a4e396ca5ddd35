"""A run's directory that holds an unfinished run: what it goes on from, with which configurations, and with which not."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from minidist.config import DistillConfig
from minidist.errors import RunDirectoryError
from minidist.run.directory import RunDirectory
from tests.unit.run.test_directory import end, run_in


class Files:
    """A learner whose checkpoint is one file."""

    async def save(self, path: Path) -> None:
        (path / "model").write_text("weights")

    async def save_state(self, path: Path) -> None: ...


def stopped_after(place: Path, step: int, metrics: str, later: str = "", config: Any = None) -> RunDirectory:
    """A run that wrote a checkpoint, measured a little more, and was killed."""
    directory = RunDirectory(config) if config is not None else run_in(place)
    assert directory.start() is None
    (place / "metrics.jsonl").write_text(metrics + later)
    state = {"metrics_bytes": len(metrics.encode())}
    asyncio.run(directory.checkpoints.write(step, Files(), state))  # type: ignore[arg-type]
    end(directory)
    return directory


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    stopped_after(tmp_path, 3, '{"step": 1}\n{"step": 2, "name": "ä"}\n', '{"step": 3}\n{"st')
    (tmp_path / "best").mkdir()
    again = run_in(tmp_path)
    assert not again.finished()
    checkpoint = again.start()
    assert checkpoint is not None and (checkpoint.step, checkpoint.path.name) == (3, "step_000003")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2, "name": "ä"}\n'
    assert (tmp_path / "best").is_dir()


@pytest.mark.parametrize("missing", [True, False])
def test_metrics_shorter_than_the_checkpoint_says(tmp_path: Path, missing: bool) -> None:
    stopped_after(tmp_path, 3, "0123456789")
    file = tmp_path / "metrics.jsonl"
    file.unlink() if missing else file.write_text("012345678")
    with pytest.raises(RunDirectoryError, match=r"metrics.jsonl is shorter than when step_000003 .*run.overwrite=true"):
        run_in(tmp_path).start()


def test_overwrite_does_not_go_on(tmp_path: Path) -> None:
    stopped_after(tmp_path, 3, "0123456789")
    assert run_in(tmp_path, overwrite=True).start() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


def test_damaged_checkpoints_are_no_reason_to_delete_a_run(tmp_path: Path) -> None:
    stopped_after(tmp_path, 3, "0123456789")
    (tmp_path / "checkpoints" / "step_000003" / "model").write_text("Weights")
    with pytest.raises(RunDirectoryError, match="every checkpoint"):
        run_in(tmp_path).start()
    assert (tmp_path / "metrics.jsonl").read_text() == "0123456789"


def distill(place: Path, changes: dict[str, Any] | None = None) -> DistillConfig:
    tree: dict[str, Any] = {
        "stage": "distill",
        "run": {"directory": str(place)},
        "student": {"model": "student"},
        "teacher": {"model": "teacher"},
        "data": {"prompts": {"path": "task:sort"}},
        "objective": {"type": "reverse_kl"},
    }
    for key, value in (changes or {}).items():
        *sections, name = key.split(".")
        part = tree
        for section in sections:
            part = part.setdefault(section, {})
        part[name] = value
    return DistillConfig.model_validate(tree)


FREE: list[dict[str, Any]] = [
    {"cluster.learner.ranks": 2, "cluster.rollout.actors": 2, "cluster.teacher.cpus": 0.5},
    {"cluster.roles": "local", "cluster.gpus": 0, "cluster.threads": 1},
    {"cluster.gpus": 4, "cluster.address": "auto", "cluster.placement": "spread"},
    {"learner.backend": "single"},
    {"learner.zero_stage": 3, "learner.offload_optimizer": True, "learner.offload_parameters": True},
    {"learner.activation_checkpointing": True, "learner.micro_batch_tokens": 9, "learner.layout": "packed"},
    {"learner.chunk_tokens": 7},
    {"canaries.stop_on": ["truncated", "age"], "canaries.alarm_truncated": 0.9, "canaries.alarm_clip": None},
    {"run.checkpoint_every": 7, "run.checkpoints_kept": 9, "run.rollouts_every": 3, "run.tensorboard": False},
]
BOUND: list[dict[str, Any]] = [
    {"learner.optimizer.lr": 0.5},
    {"learner.optimizer.grad_clip": None},
    {"run.steps": 7},
    {"run.seed": 7},
    {"run.deterministic": True},
    {"prefix.student": 0.5, "prefix.teacher": 0.5},
    {"prefix.per": "step"},
    {"objective.temperature": 2.0},
    {"teacher.payload": "top_k"},
    {"rollout.max_new_tokens": 9},
    {"rollout.prompts_per_step": 9},
    {"streams.sft.data.path": "task:sort"},
    {"student.lora.rank": 2},
    {"evaluation.prompts": 3},
    {"canaries.every": 3},
]


@pytest.mark.parametrize("changes", FREE, ids=lambda changes: " ".join(changes))
def test_a_run_may_go_on_with_another_machine(tmp_path: Path, changes: dict[str, Any]) -> None:
    stopped_after(tmp_path, 3, "", config=distill(tmp_path))
    found = RunDirectory(distill(tmp_path, changes)).start()
    assert found is not None and found.step == 3


@pytest.mark.parametrize("changes", BOUND, ids=lambda changes: " ".join(changes))
def test_a_run_may_not_go_on_as_another_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    stopped_after(tmp_path, 3, "", config=distill(tmp_path))
    key = next(iter(changes)).removesuffix(".data.path").removesuffix(".rank")
    with pytest.raises(RunDirectoryError, match=rf"holds a run of another configuration: {key} was .* and is now "):
        RunDirectory(distill(tmp_path, changes)).start()


def test_a_run_may_go_on_where_it_was_moved_to(tmp_path: Path) -> None:
    stopped_after(tmp_path / "a", 3, "", config=distill(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    found = RunDirectory(distill(tmp_path / "b")).start()
    assert found is not None and found.path.parent.parent == tmp_path / "b"
