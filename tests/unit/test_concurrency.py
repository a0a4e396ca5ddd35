"""Calls at once: results in order, and the first failure ends the rest; work that is finished though it is cancelled."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence

import pytest

from minidist.concurrency import beside, both, briefly, deal, merged, nothing, one_by_one, together, whole


def test_together_gives_results_in_order_however_long_they_take() -> None:
    async def late(value: int) -> int:
        await asyncio.sleep(0.01 * (3 - value))
        return value

    assert asyncio.run(together(late(value) for value in range(3))) == [0, 1, 2]
    assert asyncio.run(together([])) == []


def test_after_a_failure_the_calls_that_follow_never_begin() -> None:
    begun: list[int] = []

    async def call(number: int) -> int:
        begun.append(number)
        await asyncio.sleep(0)
        if number == 2:
            raise RuntimeError("no")
        return number

    assert asyncio.run(one_by_one(call(0), call(1))) == [0, 1]
    left = call(3)
    with pytest.raises(RuntimeError, match="no"):
        asyncio.run(one_by_one(call(2), left))
    assert begun == [0, 1, 2] and left.cr_frame is None, "it is closed, and nobody warns of it"


def test_a_brief_call_leaves_no_thread_behind_whether_it_ends_well_or_not() -> None:
    """A thread that stays keeps helpers of OpenMP: with more of them than cores, those of the role itself sleep at once."""

    def number(of: int) -> tuple[int, threading.Thread]:
        return 1 // of, threading.current_thread()

    found, thread = asyncio.run(briefly(number, of=1))
    assert found == 1 and thread is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(briefly(number, 0))
    until = time.monotonic() + 10
    while any(each.name.startswith("briefly") for each in threading.enumerate()):
        assert time.monotonic() < until, "the thread is still there"


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
def test_items_are_dealt_in_turn_and_results_come_back_in_order(members: int, each: int) -> None:
    hands: dict[int, list[int]] = {}

    async def call(member: int, items: Sequence[int]) -> list[tuple[int, int]]:
        hands[member] = list(items)
        return [(item, number) for item in items for number in range(each)]

    found = asyncio.run(deal(range(members), list(range(7)), call, each=each))
    assert found == [(item, number) for item in range(7) for number in range(each)]
    assert hands == {member: list(range(member, 7, members)) for member in range(members)}, "an idle one is called too"


async def numbers(first: int, pause_s: float, ended: list[int], failing: bool = False) -> AsyncGenerator[int, None]:
    try:
        for number in range(first, first + 3):
            await asyncio.sleep(pause_s)
            if failing:
                raise KeyError(first)
            yield number
    finally:
        ended.append(first)


def test_merged_generators_give_what_comes_first_with_their_numbers() -> None:
    async def run() -> None:
        ended: list[int] = []
        found = [each async for each in merged([numbers(10, 0.05, ended), numbers(20, 0.001, ended)])]
        assert found == [(1, 20), (1, 21), (1, 22), (0, 10), (0, 11), (0, 12)] and ended == [20, 10]

    asyncio.run(run())


@pytest.mark.parametrize("failing", [True, False])
def test_a_failure_and_closing_end_every_merged_generator(failing: bool) -> None:
    async def run() -> None:
        ended: list[int] = []
        both = merged([numbers(10, 600, ended), numbers(20, 0.001, ended, failing)])
        if failing:
            with pytest.raises(KeyError):
                await anext(both)
        else:
            assert await anext(both) == (1, 20)
            await both.aclose()
        assert sorted(ended) == [10, 20]

    asyncio.run(run())


def test_work_beside_a_task_gives_its_result_whatever_the_task_does_well() -> None:
    async def scene() -> None:
        async def after(seconds: float) -> int:
            await asyncio.sleep(seconds)
            return 7

        for seconds in (0.0, 0.002, 60):
            background = asyncio.ensure_future(asyncio.sleep(seconds))
            assert await beside(after(0.001), background) == 7
            background.cancel()

    asyncio.run(scene())


def test_a_failure_in_the_background_ends_the_work() -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("slow")

    async def fail() -> None:
        raise ValueError("background")

    async def scene() -> None:
        background = asyncio.ensure_future(fail())
        for _ in range(2):  # while it fails, and when it has failed
            with pytest.raises(ValueError, match="background"):
                await beside(slow(), background)
        other: asyncio.Task[None] = asyncio.ensure_future(asyncio.sleep(60))
        task = asyncio.ensure_future(beside(slow(), other))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not other.cancelled()
        other.cancel()

    asyncio.run(scene())
    assert len(ended) >= 2
