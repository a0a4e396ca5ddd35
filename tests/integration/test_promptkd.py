"""PromptKD: a teacher that is trained too, in every rank of a DeepSpeed learner, against one process of plain torch."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.teacher import SoftPromptConfig
from minidist.data.batching import collate
from minidist.roles.make import make_learner
from minidist.types import Batch, Rollout
from tests.integration.conftest import Stack, learner_arguments
from tests.integration.test_equalities import written
from tests.integration.test_ranks import UNEVEN, assert_same, one_row, weights_of
from tests.integration.test_runs import metrics, write
from tests.support.commands import run
from tests.support.config import teacher_config

PROMPT_FIGURES = ("prompt/kl_to_student_nats", "prompt/kl_to_base_nats", "prompt/grad_norm", "prompt/regulariser")
# A large eps: where a gradient is all rounding, a small one would make a step of it.
ADAM = OptimizerConfig(lr=1e-2, eps=1e-3, grad_clip=0.5)


@pytest.fixture(scope="module")
def rollouts(stack: Stack) -> list[Rollout]:
    stack.run(stack.engines.load(stack.student))
    return written(stack, count=25, seed=11)


def prompt_in(path: Path) -> np.ndarray:
    return load_file(path / "teacher" / "prompt.safetensors")["prompt"]


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_take_the_steps_of_one(stack: Stack, rollouts: list[Rollout], tmp_path: Path, stage: Any) -> None:
    """Two steps, a third one on a single row, of which one rank has nothing; and a fourth after a restart with one rank."""
    own = {"prompt": SoftPromptConfig(tokens=3, text="abc", lr=0.05), "placement": "learner"}
    changes: dict[str, Any] = {
        "teacher": teacher_config(model=str(stack.teacher_path), **own),
        "context": replace(stack.context, steps=5),
    }
    single = make_learner(**learner_arguments(stack, LearnerConfig(backend="single", optimizer=ADAM)) | changes)
    ranks = stack.ranks(LearnerConfig(optimizer=ADAM, zero_stage=stage, **UNEVEN), **changes)
    batch = Batch(0, ((collate("main", rollouts, None, objective="main"),),))
    for each in (batch, batch, one_row(batch)):
        told, wanted = stack.run(ranks.update(each)).metrics, asyncio.run(single.update(each)).metrics
        for name in ("main/loss_nats_per_token", "main/teacher_logprob_nats", "learner/grad_norm", *PROMPT_FIGURES):
            assert told[name] == pytest.approx(wanted[name], rel=1e-3), name
    assert_same(weights_of(ranks, stack), weights_of(single), atol=2e-5)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    stack.run(ranks.save(tmp_path / "two"))
    stack.run(ranks.save_state(tmp_path / "two"))
    asyncio.run(single.save(tmp_path / "one"))
    np.testing.assert_allclose(prompt_in(tmp_path / "two"), prompt_in(tmp_path / "one"), atol=2e-5)

    ours, theirs = (stack.run(ranks.measure(batch.steps[0][0])), asyncio.run(single.measure(batch.steps[0][0])))
    assert np.abs(ours.reverse_kl - theirs.reverse_kl).max() < 1e-3
    resumed = make_learner(**learner_arguments(stack, LearnerConfig(backend="single", optimizer=ADAM)) | changes)
    asyncio.run(resumed.resume(tmp_path / "two"))
    again, undisturbed = (asyncio.run(learner.update(batch)).metrics for learner in (resumed, single))
    assert again["prompt/regulariser"] == undisturbed["prompt/regulariser"] == pytest.approx(0.4)
    assert again["prompt/kl_to_student_nats"] == pytest.approx(undisturbed["prompt/kl_to_student_nats"], rel=1e-3)
    assert_same(weights_of(resumed), weights_of(single), atol=5e-5)


def test_a_run_starts_no_teacher_and_keeps_the_prompt(stack: Stack, tmp_path: Path) -> None:
    config = {
        "stage": "distill",
        "run": {"directory": str(tmp_path / "run"), "steps": 4, "checkpoint_every": 2},
        "student": {"model": str(stack.student)},
        "teacher": {"model": str(stack.teacher_path), "placement": "learner", "prompt": {"lr": 0.05}},
        "data": {"prompts": {"path": "task:sort", "rows": 50}, "max_prompt_tokens": 16},
        "objective": {"type": "reverse_kl"},
        "rollout": {"engine": "hf", "prompts_per_step": 16, "max_new_tokens": 8},
        "learner": {"backend": "single", "optimizer": {"lr": 1e-3}},
        "cluster": {"roles": "local", "threads": 1},
    }
    done = run("distill", write(tmp_path / "run.yaml", config))
    assert done.returncode == 0, done.stderr
    assert "7 virtual tokens before every text" in done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "teacher" not in summary and summary["syncs_proved"] == 5
    steps = [line for line in metrics(tmp_path / "run") if "loss/nats_per_token" in line]
    assert [line["prompt/regulariser"] for line in steps] == [1, 0.75, 0.5, 0.25]
    assert all(line["prompt/kl_to_student_nats"] > 0 and line["prompt/grad_norm"] > 0 for line in steps)
    assert steps[0]["canary/teacher_logprob_nats"] < 0  # of the prompted one
    prompts = [prompt_in(tmp_path / "run" / each) for each in ("checkpoints/step_000002", "checkpoints/step_000004", "final")]
    assert prompts[0].shape == (7, 96)
    assert np.abs(prompts[0] - prompts[1]).max() > 1e-3 and np.array_equal(prompts[1], prompts[2])
