"""Work dealt to several of a role: every row once, results in order, the first failure ends the rest."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from minidist.concurrency import both, deal, nothing, together, whole
from minidist.data.batching import collate
from minidist.errors import DivergedError
from minidist.learners.ranks import LearnerRanks
from minidist.types import Batch, Measures, Payload, Stream, TeacherScores, Update
from tests.support.tiny import random_rollouts


class Rank:
    """Measures a row's labels as themselves; remembers what it was given."""

    def __init__(self, number: int, fails: bool = False) -> None:
        self.number, self.fails = number, fails
        self.given: list[Any] = []
        self.state = "idle"

    async def update(self, batch: Batch) -> Update:
        await self._work(batch)
        return Update(1, {"rank": float(self.number)})

    async def measure(self, stream: Stream, temperature: float = 1.0) -> Measures:
        await self._work(stream)
        lengths = [len(row.labels) for row in stream.rows]
        labels = np.concatenate([row.labels for row in stream.rows]).astype(np.float64)
        taught = None if stream.rows[0].scores is None or not len(labels) else labels + 0.25
        kinds = (None, None) if taught is None else (labels + 0.5, labels + 0.75)
        return Measures(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths), labels, taught, *kinds)

    async def _work(self, given: Any) -> None:
        self.given.append(given)
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
        self.given.append("weights")
        return None if self.number else "weights of the first"

    async def keep(self, verb: str) -> str | None:
        self.given.append(verb)
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
        dealt = [rank.given[0].steps[0][index] for rank in RANKS]
        assert [rank.given[0].step for rank in RANKS] == [4] * count
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


def test_what_all_ranks_hold_is_read_off_the_first_and_all_take_part() -> None:
    learner = ranks(3)
    assert asyncio.run(learner.weights()) == "weights of the first"  # type: ignore[comparison-overlap]
    assert asyncio.run(learner.keep("weights")) == "kept weights"
    assert [rank.given for rank in RANKS] == [["weights", "weights"]] * 3


def test_together_gives_results_in_order_however_long_they_take() -> None:
    async def late(value: int) -> int:
        await asyncio.sleep(0.01 * (3 - value))
        return value

    assert asyncio.run(together(late(value) for value in range(3))) == [0, 1, 2]
    assert asyncio.run(together([])) == []


def test_together_ends_all_that_it_began_before_it_raises() -> None:
    ended: list[str] = []

    async def work(name: str, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
            raise ValueError(name)
        finally:
            await asyncio.sleep(0)  # it takes time to end
            ended.append(name)

    async def fail() -> None:
        with pytest.raises(ValueError, match="first"):
            await together([work("slow", 60), work("first", 0.001), work("slower", 60)])
        assert sorted(ended) == ["first", "slow", "slower"]

    async def cancel() -> None:
        task = asyncio.ensure_future(together([work("a", 60), work("b", 60)]))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(ended)[:2] == ["a", "b"]

    asyncio.run(fail())
    asyncio.run(cancel())


def test_both_gives_two_results_of_their_own_types() -> None:
    async def work(value: str) -> str:
        await asyncio.sleep(0)
        return value

    assert asyncio.run(both(work("learner"), nothing())) == ("learner", None)


def test_whole_work_is_finished_before_its_cancellation_is_raised() -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.append("work")

    async def cancelled(times: int) -> None:
        task = asyncio.ensure_future(whole(work()))
        for _ in range(times):
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled(times=1))
    assert done == ["work"]
    asyncio.run(cancelled(times=2))
    assert done == ["work"], "cancelled twice, it ends at once"


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("members", [1, 2, 3, 9])
def test_deal_in_turn_and_back_in_order(members: int, each: int) -> None:
    hands: dict[int, list[int]] = {}

    async def call(member: int, items: Sequence[int]) -> list[tuple[int, int]]:
        hands[member] = list(items)
        return [(item, number) for item in items for number in range(each)]

    found = asyncio.run(deal(range(members), list(range(7)), call, each=each))
    assert found == [(item, number) for item in range(7) for number in range(each)]
    assert hands == {member: list(range(member, 7, members)) for member in range(members)}, "an idle one is called too"
