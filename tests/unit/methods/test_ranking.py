"""Credit of ranked answers: the gradient of a step is that of the pairwise loss."""

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from minidist.losses import ranking_loss
from minidist.losses.objectives import make_objective
from minidist.losses.targets import TokenCredit, TokenTargets
from minidist.methods.ranking import RankingCredit
from minidist.types import Measures, Row, Stream
from tests.support.collecting import distill_config


@pytest.mark.parametrize("f", ["reverse_kl", "forward_kl", "jsd", "alpha"])
def test_the_gradient_of_a_step_is_that_of_the_loss(f: Any) -> None:
    """Through a collection's credit and the learner's objective, sum over tokens divided by their count."""
    generator = np.random.default_rng(1)
    lengths = [3, 1, 4, 2, 2, 5]
    tokens = sum(lengths)
    student, teacher = -generator.random(tokens) * 3, -generator.random(tokens) * 3
    rows = tuple(Row(np.zeros(n + 1), np.arange(n), np.zeros(n, dtype=np.int64)) for n in lengths)
    stream = Stream("main", rows, "main", tokens)

    class MeasuringLearner:
        async def measure(self, stream: Stream, temperature: float = 1.0) -> Measures:
            assert temperature == 0.7
            return Measures(np.repeat(np.arange(6), lengths), student, teacher)

    objective = {"type": "ranking", "f": f, "beta": 1.3, "temperature": 0.7}
    config = distill_config(objective=objective, rollout={"samples_per_prompt": 3, "temperature": 0.7})
    credited, _, figures = asyncio.run(RankingCredit(config, MeasuringLearner()).credit(stream))  # type: ignore[arg-type]

    logprobs = torch.tensor(student).requires_grad_()
    sums = torch.stack([part.sum() for part in logprobs.split(lengths)]).view(2, 3)
    teacher_sums = torch.stack([part.sum() for part in torch.tensor(teacher).split(lengths)]).view(2, 3)
    loss = ranking_loss(sums, teacher_sums, torch.tensor(lengths).view(2, 3), f=f, beta=1.3, alpha=0.5).mean()
    (wanted,) = torch.autograd.grad(loss, logprobs)
    assert figures["ranking/loss_nats"] == pytest.approx(loss.item())

    table = torch.tensor(student)[:, None].requires_grad_()  # [tokens, 1]: the label is class 0
    fields = ("old_logprob", "advantage", "weight", "reach")
    credits = [row.credit for row in credited.rows if row.credit is not None]
    joined = (torch.tensor(np.concatenate([getattr(each, name) for each in credits])) for name in fields)
    targets = TokenTargets(torch.zeros(tokens, dtype=torch.long), credit=TokenCredit(*joined))
    value = make_objective(config.objective)(table, targets).sum() / stream.loss_tokens
    (found,) = torch.autograd.grad(value, table)
    assert torch.allclose(found[:, 0], wanted, rtol=1e-5, atol=1e-8)
