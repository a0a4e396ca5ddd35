"""The learner's ranks as one learner: every row goes to one rank, and results come back in order."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from minidist.data.batching import collate
from minidist.errors import DivergedError
from minidist.learners.ranks import LearnerRanks
from minidist.types import Batch, Measures, Payload, Stream, TeacherScores, Update
from tests.support.tiny import random_rollouts


class Rank:
    """Measures the labels of a row as themselves, and records its arguments."""

    def __init__(self, number: int, fails: bool = False) -> None:
        self.number, self.fails = number, fails
        self.received: list[Any] = []
        self.state = "idle"

    async def update(self, batch: Batch) -> Update:
        await self._work(batch)
        return Update(1, {"rank": float(self.number)})

    async def measure(self, stream: Stream, temperature: float = 1.0) -> Measures:
        await self._work(stream)
        lengths = [len(row.labels) for row in stream.rows]
        labels = np.concatenate([row.labels for row in stream.rows]).astype(np.float64)
        teacher = None if stream.rows[0].scores is None or not len(labels) else labels + 0.25
        kinds = (None, None) if teacher is None else (labels + 0.5, labels + 0.75)
        return Measures(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths), labels, teacher, *kinds)

    async def _work(self, argument: Any) -> None:
        self.received.append(argument)
        self.state = "at work"
        try:
            await asyncio.sleep(0)
            if self.fails:
                raise DivergedError(f"rank {self.number}")
            await asyncio.sleep(0 if not any(rank.fails for rank in RANKS) else 60)
            self.state = "done"
        except asyncio.CancelledError:
            self.state = "cancelled"
            raise

    async def weights(self) -> str | None:
        self.received.append("weights")
        return None if self.number else "weights of the first"

    async def keep(self, verb: str) -> str | None:
        self.received.append(verb)
        return None if self.number else f"kept {verb}"


RANKS: list[Rank] = []


def ranks(count: int, failing: int | None = None) -> LearnerRanks:
    RANKS[:] = [Rank(number, number == failing) for number in range(count)]
    return LearnerRanks(RANKS)  # type: ignore[arg-type]


def stream(lengths: Sequence[tuple[int, int]], name: str = "main", *, scored: bool = True, weight: float = 1.0) -> Stream:
    rollouts = random_rollouts(lengths, seed=len(lengths))
    scores = [TeacherScores(Payload.SAMPLED, logprobs=np.zeros(len(r.tokens))) for r in rollouts] if scored else None
    return collate(name, rollouts, scores, objective=name, weight=weight)


LONG = stream([(1, 9), (2, 3), (6, 1), (3, 8), (2, 2)])
SHORT = stream([(2, 5)], "sft", scored=False, weight=0.5)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_ranks_are_given_shares_of_every_stream_with_the_counts_of_all(count: int) -> None:
    update = asyncio.run(ranks(count).update(Batch(4, ((LONG, SHORT),), metrics={"x": 1.0})))
    assert update.metrics == {"rank": 0.0}
    for index, full in enumerate((LONG, SHORT)):
        dealt = [rank.received[0].steps[0][index] for rank in RANKS]
        assert [rank.received[0].step for rank in RANKS] == [4] * count
        for part in dealt:
            assert (part.name, part.objective, part.weight) == (full.name, full.objective, full.weight)
            assert part.loss_tokens == full.loss_tokens, "of all ranks, or the loss would be scaled wrongly"
            assert part.rows, "a rank without rows takes part"
        trained = [row for part in dealt for row in part.rows if len(row.labels)]
        assert sorted(map(id, trained)) == sorted(map(id, full.rows))
        assert sum(not len(row.labels) for part in dealt for row in part.rows) == max(0, count - len(full.rows))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("scored", [True, False])
def test_measures_come_back_in_the_order_of_the_rows(count: int, scored: bool) -> None:
    full = stream([(1, 9), (2, 3), (6, 1), (3, 8), (2, 2)], scored=scored)
    found = asyncio.run(ranks(count).measure(full))
    labels = np.concatenate([row.labels for row in full.rows])
    assert found.row.tolist() == [index for index, row in enumerate(full.rows) for _ in row.labels]
    assert found.row.dtype == np.int32
    assert found.student_logprob.tolist() == labels.tolist()
    columns = (found.teacher_logprob, found.reverse_kl, found.forward_kl)
    for column, offset in zip(columns, (0.25, 0.5, 0.75), strict=True):
        assert column is None if not scored else column is not None and column.tolist() == (labels + offset).tolist()


@pytest.mark.parametrize("verb", ["update", "measure"])
def test_the_first_rank_that_fails_ends_the_others(verb: str) -> None:
    learner = ranks(3, failing=1)
    with pytest.raises(DivergedError, match="rank 1"):
        asyncio.run(learner.update(Batch(0, ((LONG,),))) if verb == "update" else learner.measure(LONG))
    assert [rank.state for rank in RANKS] == ["cancelled", "at work", "cancelled"]


def test_the_first_rank_answers_for_all_and_all_take_part() -> None:
    learner = ranks(3)
    assert asyncio.run(learner.weights()) == "weights of the first"  # type: ignore[comparison-overlap]
    assert asyncio.run(learner.keep("weights")) == "kept weights"
    assert [rank.received for rank in RANKS] == [["weights", "weights"]] * 3
