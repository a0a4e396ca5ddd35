"""Many of each role give the numbers of one: engines, teachers, learner ranks, shards of a teacher."""

import asyncio
from typing import Any

import numpy as np
import pytest

from minidist.types import Batch
from tests.integration.conftest import Stack, settings
from tests.integration.test_equalities import on_policy_batch, plain_learner, written

STAGES = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def batch(stack: Stack) -> Batch:
    """Rollouts of uneven length, scored, with a second stream that has fewer rows."""
    return on_policy_batch(stack, written(stack, count=25, seed=5))


@pytest.fixture(scope="module")
def expected(stack: Stack, batch: Batch) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Weights and metrics of the plain learner in one process after a step of gradient descent at rate 1."""
    single = plain_learner(stack)
    update = asyncio.run(single.update(batch))
    weights = asyncio.run(single.weights())
    assert weights is not None
    return weights.arrays, update.metrics


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_give_the_gradient_of_one(stack: Stack, batch: Batch, expected: Any, stage: int) -> None:
    learner = stack.ranks(settings(micro_batch_tokens=90, chunk_tokens=40, zero_stage=stage))
    update = stack.run(learner.update(batch))
    arrays, metrics = expected
    weights = stack.run(learner.weights())
    assert weights.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_allclose(weights.arrays[name], array, atol=3e-6, err_msg=name)
    for name in ("loss/nats_per_token", "main/student_logprob_nats", "supervised/loss_nats_per_token", "learner/loss_tokens"):
        assert update.metrics[name] == pytest.approx(metrics[name], rel=1e-5), name
    assert update.metrics["learner/grad_norm"] == pytest.approx(metrics["learner/grad_norm"], rel=1e-4)
