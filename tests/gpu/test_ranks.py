"""Two GPUs: ranks of a learner over NCCL."""

import pytest

from minidist.types import Batch
from tests.integration.conftest import Stack
from tests.integration.test_equalities import on_policy_batch, written
from tests.integration.test_ranks import Expected, step_in_one_process, two_ranks_give_the_step

pytestmark = [pytest.mark.gpu2, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def batch(two_ranks: Stack) -> Batch:
    return on_policy_batch(two_ranks, written(two_ranks, count=25, seed=5))


@pytest.fixture(scope="module")
def expected(two_ranks: Stack, batch: Batch) -> Expected:
    return step_in_one_process(two_ranks, batch)


@pytest.mark.parametrize("way", ["ZeRO-1", "ZeRO-2", "ZeRO-3"])
def test_two_ranks_give_the_gradient_of_one(two_ranks: Stack, batch: Batch, expected: Expected, way: str) -> None:
    """Within what sums in another order differ by, on other hardware."""
    two_ranks_give_the_step(two_ranks, batch, expected, way, atol=1e-4)
