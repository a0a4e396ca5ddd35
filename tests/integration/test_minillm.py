"""MiniLLM through vLLM, teacher actors and two DeepSpeed ranks, against the reference loss in plain torch."""

from typing import Any

import numpy as np
import pytest
import torch

from minidist.config.models import ModelConfig
from minidist.data.batching import collate, in_minibatches
from minidist.losses import minillm_loss
from minidist.methods.minillm import PolicyCredit
from minidist.models.hub import load_model
from minidist.types import Batch, Rollout
from tests.integration.conftest import Stack, settings
from tests.integration.test_equalities import written
from tests.integration.test_ranks import UNEVEN, assert_same, weights_of
from tests.support.collecting import distill_config

MIX, WIDTH, RATE = 0.2, 24, 0.05


@pytest.fixture(scope="module")
def rollouts(stack: Stack) -> list[Rollout]:
    stack.run(stack.engines.load(stack.student))
    return written(stack, count=25, seed=7)


def logits_of(model: Any, rollouts: list[Rollout]) -> torch.Tensor:
    rows = torch.zeros(len(rollouts), WIDTH, model.config.vocab_size)
    for number, rollout in enumerate(rollouts):
        ids = torch.tensor(np.concatenate([rollout.prompt.tokens, rollout.tokens])[None].astype(np.int64))
        rows[number, : len(rollout.tokens)] = model(ids).logits[0, len(rollout.prompt.tokens) - 1 : -1]
    return rows


@pytest.mark.parametrize(("preset", "stage"), [("paper", 2), ("lmops", 3)])
def test_two_ranks_take_the_steps_of_the_reference(stack: Stack, rollouts: list[Rollout], preset: Any, stage: int) -> None:
    options = {"preset": preset, "minibatches": 2, "inner_epochs": 2}
    rollout = {"teacher_mix": MIX, "max_new_tokens": WIDTH}
    config = distill_config(objective={"type": "minillm", **options}, rollout=rollout)
    objective: Any = config.objective
    learner = stack.ranks(settings(lr=RATE, zero_stage=stage, **UNEVEN), objectives={"main": objective})
    stream = collate("main", rollouts, stack.run(stack.teachers.score(rollouts)), objective="main")
    stream, measures, _ = stack.run(PolicyCredit(config, learner).credit(stream))
    steps = tuple((part,) for part in in_minibatches(stream, 2, 2, seed=(0, 0)))
    update = stack.run(learner.update(Batch(0, steps)))
    assert update.version == 4 and update.metrics["learner/loss_tokens"] == 2 * stream.loss_tokens

    student = load_model(ModelConfig(model=str(stack.student)), "student")
    tokens = torch.zeros(len(rollouts), WIDTH, dtype=torch.long)
    for number, rollout in enumerate(rollouts):
        tokens[number, : len(rollout.tokens)] = torch.tensor(rollout.tokens)
    lengths = torch.tensor([len(rollout.tokens) for rollout in rollouts])
    with torch.no_grad():
        taught = logits_of(load_model(ModelConfig(model=str(stack.teacher_path)), "teacher"), rollouts)
        said = torch.log_softmax(logits_of(student, rollouts), -1).gather(-1, tokens[..., None])[..., 0]
    mask = torch.arange(WIDTH) < lengths[:, None]
    assert np.abs(measures.student_logprob - said[mask].numpy()).max() < 2e-4
    engine = np.concatenate([rollout.logprobs for rollout in rollouts])
    assert np.abs(measures.student_logprob - engine).max() < 2e-4  # the old student is the one that wrote
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    for (part,) in steps:
        picked = [next(i for i, row in enumerate(stream.rows) if row is own) for own in part.rows]
        losses = minillm_loss(
            logits_of(student, rollouts),
            taught,
            tokens,
            lengths,
            old_logprobs_BT=said,
            teacher_mix=MIX,
            **({"whitening": objective.whitening} | options),
        )
        optimizer.zero_grad()
        (losses[picked].sum() / lengths[picked].sum()).backward()
        optimizer.step()
    wanted = {name: tensor.numpy() for name, tensor in student.state_dict().items()}
    start = load_model(ModelConfig(model=str(stack.student)), "student").state_dict()
    assert max(np.abs(wanted[name] - start[name].numpy()).max() for name in wanted) > 2e-3
    assert_same(weights_of(learner, stack), wanted, atol=1e-5)
