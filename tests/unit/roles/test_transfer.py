"""A weight sync is proved by log-probabilities: a correct sync passes, every other is refused."""

import asyncio
import math

import numpy as np
import pytest

from minidist.errors import CanaryError, DivergedError
from minidist.roles.transfer import ObjectStoreTransfer
from tests.support.fakes import StaleEngine, TableEngine, TableLearner

OLD, NEW = np.random.default_rng(0).normal(size=(2, 5, 5))


class SpoiltEngine(TableEngine):
    """Loads the weights, and changes one log-probability."""

    def __init__(self, by: float) -> None:
        super().__init__(OLD)
        self.by = by

    async def score(self, sequences: list[list[int]]) -> list[list[float]]:
        rows = await super().score(sequences)
        rows[-1][-1] += self.by
        return rows


def publish(*engines: TableEngine, tolerance: float = 1e-3) -> float:
    return asyncio.run(ObjectStoreTransfer(tolerance).publish(TableLearner(NEW), engines))


def test_a_correct_sync_returns_its_largest_difference() -> None:
    engines = TableEngine(OLD), TableEngine(OLD)
    assert publish(*engines) < 1e-12
    assert all(np.array_equal(engine.table, NEW) for engine in engines)
    assert publish(TableEngine(OLD), SpoiltEngine(5e-4)) == pytest.approx(5e-4)


def test_a_stale_engine_is_refused() -> None:
    with pytest.raises(CanaryError, match=r"weight sync 1: .* differ from the learner's by .* more than 0.001"):
        publish(StaleEngine(OLD))


@pytest.mark.parametrize("bad", [StaleEngine(OLD), SpoiltEngine(2e-3), SpoiltEngine(-2e-3), SpoiltEngine(math.nan)])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_wrong_engine_among_correct_ones_is_refused(bad: TableEngine, index: int) -> None:
    engines = [TableEngine(OLD), TableEngine(OLD)]
    engines.insert(index, bad)
    with pytest.raises(CanaryError):
        publish(*engines)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_student_that_has_grown_without_bound_has_diverged_and_its_engine_is_not_blamed(number: float) -> None:
    table = NEW.copy()
    table[:, :] = number
    with pytest.raises(DivergedError, match=r"weight sync 1: the student's log-probabilities are not finite: .*lower learner"):
        asyncio.run(ObjectStoreTransfer(1e-3).publish(TableLearner(table), [TableEngine(OLD)]))


def test_every_sync_has_its_own_number_and_probe() -> None:
    transfer, learner, engine = ObjectStoreTransfer(1e-3), TableLearner(NEW), TableEngine(OLD)
    asked: list[int] = []
    whole = learner.probe

    async def probe(version: int):  # type: ignore[no-untyped-def]
        asked.append(version)
        return await whole(version)

    learner.probe = probe  # type: ignore[method-assign]
    for _ in range(3):
        asyncio.run(transfer.publish(learner, [engine]))
    assert asked == [1, 2, 3]
    assert transfer.proved == 3
