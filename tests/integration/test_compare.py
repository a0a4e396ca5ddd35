"""`minidist compare` with the real engines: processes that stay, the numbers of a cold run, and nothing done twice."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from minidist.config import CompareConfig, load
from minidist.evaluation.records import BEFORE, TEACHER
from minidist.preflight.compare import plan_compare
from minidist.run.accounting import PREFIXES
from minidist.run.tracking import log
from minidist.stages import run_stage
from minidist.stages.compare import TEST, Cells, warm_roles
from minidist.stages.ledger import Case
from tests.integration.conftest import SHAPE, Stack, save_model

CELLS: dict[str, Any] = {
    "gold": {"objective": {"type": "supervised"}, "prefix": {"student": 0, "dataset": 1}},
    "own": {"objective": {"type": "reverse_kl"}},
}


def configured(models: Path, root: Path, cells: dict[str, Any], **base: Any) -> CompareConfig:
    tree: dict[str, Any] = {
        "stage": "compare",
        "run": {"directory": str(root / "compare")},
        "seeds": [0, 1],
        "base": {
            "run": {"steps": 3, "deterministic": True, "tensorboard": False, "checkpoint_every": None},
            "student": {"model": str(models / "student")},
            "teacher": {"model": str(models / "teacher")},
            "data": {"prompts": {"path": "task:sort", "rows": 40}, "max_prompt_tokens": 16},
            "rollout": {"prompts_per_step": 8, "max_new_tokens": 8, "engine": base.pop("engine", "vllm")},
            "learner": {"backend": base.pop("backend", "deepspeed"), "optimizer": {"lr": 0.01}},
            **base,
        },
        "cells": cells,
        "evaluation": {"test": {"path": "task:sort", "split": "test", "rows": 16}},
    }
    file = root / "compare.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    found = load(file)
    assert isinstance(found, CompareConfig)
    return found


@pytest.fixture
def as_before() -> Iterator[None]:
    """What a run in this process changes for all of it."""
    handlers, propagate = log.handlers, log.propagate
    yield
    log.handlers, log.propagate = handlers, propagate
    torch.use_deterministic_algorithms(False)


def numbers(directory: Path) -> list[dict[str, float]]:
    """A run's metrics, but for how long things took."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(PREFIXES)} for line in lines]


class Borrowed:
    """The session's cluster, whose first engine and teacher serve as those that are asked for; a learner is hosted anew."""

    def __init__(self, stack: Stack) -> None:
        self._there = {"rollout": stack.engine, "teacher": stack.teacher}
        self.host_group, self.restart = stack.cluster.host_group, stack.cluster.restart
        self.first, self.calls = stack.cluster.first, stack.cluster.calls
        self.restarts, self.supervised = stack.cluster.restarts, stack.cluster.supervised

    async def host(self, role: str, make: Any, **arguments: Any) -> Any:
        return self._there[role]

    def supervise(self, actors: Any, make: Any, arguments: Any, assemble: Any = itemgetter(0)) -> Any:
        return assemble(list(actors))


def test_cells_share_processes_and_a_warm_learner_gives_the_numbers_of_a_new_one(stack: Stack, tmp_path: Path) -> None:
    config = configured(stack.student.parent, tmp_path, CELLS)
    borrowed: Any = Borrowed(stack)
    plan = plan_compare(config)
    warm, cold = (Cells(warm_roles(borrowed, config, plan), config, plan) for _ in range(2))

    def process(cells: Cells) -> int:
        learner: Any = cells.roles.warm_learner
        return stack.run(learner.ask(os.getpid))

    teacher, before = stack.run(warm.baselines())
    assert (teacher["objective"], before["objective"]) == (TEACHER, BEFORE) and teacher["reverse_kl"] == 0
    first = process(warm)
    records = {(name, seed): stack.run(warm.run(Case(name, seed), TEST))[0] for seed in config.seeds for name in config.cells}
    assert process(warm) == first
    record = records["own", 1]
    assert record["reverse_kl"] < before["reverse_kl"] and records["own", 0]["reverse_kl"] != record["reverse_kl"]
    # A student that needs no teacher to learn is measured by the teacher all the same.
    assert records["gold", 0].keys() == record.keys() and records["gold", 0]["settings"]["prefix"]["dataset"] == 1
    assert record["steps"] == record["optimizer_steps"] == 3
    directory = config.cell("own", 1).run.directory
    steps = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert record["seconds"] == pytest.approx(sum(step["speed/seconds_per_step"] for step in steps), abs=0.01)
    directory.rename(tmp_path / "warm")
    stack.dismiss(warm.roles.warm_learner)
    again, _ = stack.run(cold.run(Case("own", 1), TEST))
    assert process(cold) != first
    stack.dismiss(cold.roles.warm_learner)
    stack.run(stack.engines.load(stack.student))
    for new, old in zip(numbers(directory), numbers(tmp_path / "warm"), strict=True):
        assert new == pytest.approx(old, rel=1e-3, abs=1e-5)
    assert again["reverse_kl"] == pytest.approx(record["reverse_kl"], rel=1e-3)


def test_a_comparison_is_the_same_runs_as_alone_and_is_done_once(
    tmp_path: Path, as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, with engine hf, which holds a teacher for the cell that mixes and none for the others."""
    save_model(tmp_path / "student", SHAPE, 1)
    save_model(tmp_path / "teacher", SHAPE | {"hidden_size": 96}, 2)
    mixed = {"objective": {"type": "minillm"}, "rollout.teacher_mix": 0.5}
    growing = {"lr": 1e4, "weight_decay": 1e10, "grad_clip": None}  # matrices grow 1e14-fold a step
    bad = {"objective": {"type": "reverse_kl"}, "learner": {"optimizer": growing}}
    cells = {"own": CELLS["own"], "mixed": mixed, "bad": bad, "gold": CELLS["gold"]}
    config = configured(tmp_path, tmp_path, cells, cluster={"roles": "local"}, engine="hf", backend="single")
    asyncio.run(run_stage(config))
    directory = config.run.directory
    records = json.loads((directory / "compare.json").read_text())
    assert [(row["objective"], row["seed"]) for row in records[:4]] == [(TEACHER, None), (BEFORE, None), ("own", 0), ("own", 1)]
    assert len(records) == 10 and (directory / "compare.png").is_file()
    assert [row["objective"] for row in records if "failed" in row] == ["bad", "bad"]
    assert all(
        {"reverse_kl", "forward_kl", "exposure_bias", "distinct_4"} <= row.keys() for row in records if "failed" not in row
    )
    assert "not finite" in (directory / "table.md").read_text() or "is nan" in (directory / "table.md").read_text()
    for name in ("own", "mixed"):
        cell = config.cell(name, 1)
        alone = cell.model_copy(update={"run": cell.run.model_copy(update={"directory": tmp_path / name})})
        asyncio.run(run_stage(alone))
        assert numbers(alone.run.directory) == numbers(cell.run.directory)
        weights = [(run.run.directory / "final" / "model.safetensors").read_bytes() for run in (alone, cell)]
        assert weights[0] == weights[1]

    (directory / "compare.png").unlink()
    monkeypatch.setattr(sys.modules[Cells.__module__], "Cluster", None)  # nothing may start
    asyncio.run(run_stage(config))
    assert json.loads((directory / "compare.json").read_text()) == records and (directory / "compare.png").is_file()
    monkeypatch.undo()

    (directory / "compare.json").write_text(json.dumps([row for row in records if row["objective"] != "own"]))
    asyncio.run(run_stage(config))  # trained already, to be measured
    again = json.loads((directory / "compare.json").read_text())
    assert again == records


def test_a_rate_is_chosen_on_validation_prompts_and_its_run_is_kept(tmp_path: Path, as_before: None) -> None:
    """In this process. A rate with which the run fails is not chosen, and a second call trains nothing."""
    save_model(tmp_path / "student", SHAPE, 1)
    save_model(tmp_path / "teacher", SHAPE | {"hidden_size": 96}, 2)
    optimizer = {"weight_decay": 1e10, "grad_clip": None}  # matrices grow 1e14-fold a step at the larger rate
    choose = {"values": [1e-12, 1e4], "validation": {"path": "task:sort", "split": "valid", "rows": 8}}
    config = configured(tmp_path, tmp_path, {"own": CELLS["own"]}, cluster={"roles": "local"}, engine="hf", backend="single")
    base = config.base | {"learner": {"backend": "single", "optimizer": optimizer}}
    config = CompareConfig.model_validate(config.model_dump() | {"base": base, "choose": choose})
    summary = asyncio.run(run_stage(config))
    directory = config.run.directory
    trials = json.loads((directory / "trials.json").read_text())
    assert [(row["value"], "failed" in row) for row in trials] == [(1e-12, False), (1e4, True)]
    *_, first, second = json.loads((directory / "compare.json").read_text())
    assert (first["seed"], second["seed"]) == (0, 1) and first["settings"]["lr"] == second["settings"]["lr"] == 1e-12
    assert first["choice"]["validation"]["1e-12"]["reverse_kl"] == trials[0]["reverse_kl"] != first["reverse_kl"]
    assert first["loss_tokens"] > 0 and first["seconds"] == trials[0]["seconds"], "the run of the trial"
    assert len(json.loads((directory / "prompts" / "own-seed1.json").read_text())["reverse_kl"]) == 16
    assert "the smallest of the list" in (directory / "table.md").read_text()
    assert summary["runs"] == 4 and asyncio.run(run_stage(config))["runs"] == 0
