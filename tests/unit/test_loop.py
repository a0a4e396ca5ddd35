"""Stopping the loop: a collection is given up, an update is finished, and the watch is called between two steps."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from minidist.errors import DivergedError
from minidist.loop import Run, train
from minidist.run.tracking import Clock
from minidist.types import Batch, Update


class Parts:
    """All parts of a run in one: it records each call, and waits in the call `wait_in` until `go` is set."""

    def __init__(self, wait_in: str = "", steps: int = 5, step: int = 0) -> None:
        self.calls: list[str] = []
        self.wait_in, self.reached, self.go = wait_in, asyncio.Event(), asyncio.Event()
        self.failure: Exception | None = None
        self.run = Run(steps, self, self, Clock(), self, [self], self, step)  # type: ignore[arg-type, list-item]

    async def _do(self, name: str) -> None:
        self.calls.append(name)
        if name == self.wait_in:
            self.reached.set()
            await self.go.wait()
            if self.failure is not None:
                raise self.failure
            self.calls.append(f"{name} done")

    async def next(self, step: int) -> Batch:
        await self._do(f"collect {step}")
        return Batch(step, ((),))

    async def before_update(self, batch: Batch) -> None:
        await self._do(f"check {batch.step}")

    async def update(self, batch: Batch) -> Update:
        await self._do(f"update {batch.step}")
        return Update(batch.step + 1, {})

    async def publish(self, learner: Any, engines: Sequence[Any]) -> float:
        await self._do("publish")
        return 0.0

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        await self._do(f"after {step}")
        return False

    async def stopped(self, step: int) -> None:
        await self._do(f"stopped {step}")


def whole(step: int) -> list[str]:
    return [f"collect {step}", f"check {step}", f"update {step}", "publish", f"after {step}"]


async def cancelled(parts: Parts, times: int = 1, then: Callable[[], None] = lambda: None) -> BaseException | None:
    """Cancel the run where it waits; the exception with which it ends."""
    task = asyncio.ensure_future(train(parts.run))
    await parts.reached.wait()
    for _ in range(times):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    then()
    parts.go.set()
    (end,) = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5)
    return end


@pytest.mark.parametrize("call", ["collect 1", "check 1"])
def test_a_run_cancelled_while_collecting_gives_up_the_collection(call: str) -> None:
    async def scene() -> None:
        parts = Parts(call)
        assert isinstance(await cancelled(parts), asyncio.CancelledError)
        assert parts.calls == [*whole(0), *whole(1)[: whole(1).index(call) + 1], "stopped 1"]
        assert parts.run.step == 1

    asyncio.run(scene())


@pytest.mark.parametrize("call", ["update 1", "after 1"])
def test_a_run_cancelled_while_updating_finishes_the_step_first(call: str) -> None:
    async def scene() -> None:
        parts = Parts(call)
        assert isinstance(await cancelled(parts), asyncio.CancelledError)
        rest = whole(1)[whole(1).index(call) + 1 :]
        assert parts.calls == [*whole(0), *whole(1)[: whole(1).index(call) + 1], f"{call} done", *rest, "stopped 2"]

    asyncio.run(scene())


def test_a_run_cancelled_in_its_last_update_reports_that_it_stopped() -> None:
    async def scene() -> None:
        parts = Parts("update 1", steps=2)
        assert isinstance(await cancelled(parts), asyncio.CancelledError)
        assert parts.calls[-2:] == ["after 1", "stopped 2"]

    asyncio.run(scene())


@pytest.mark.parametrize("call", ["update 1", "publish", "after 1"])
def test_a_run_cancelled_twice_in_an_update_ends_at_once_and_writes_no_checkpoint(call: str) -> None:
    """The learner then holds the weights of no step."""

    async def scene() -> None:
        parts = Parts(call)
        assert isinstance(await cancelled(parts, times=2), asyncio.CancelledError)
        assert parts.calls[-1] == call

    asyncio.run(scene())


def test_a_run_cancelled_twice_in_a_checkpoint_ends_at_once() -> None:
    async def scene() -> None:
        parts = Parts("collect 0")
        task = asyncio.ensure_future(train(parts.run))
        await parts.reached.wait()
        parts.wait_in = "stopped 0"
        for _ in range(2):
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        assert task.cancelled() and parts.calls == ["collect 0", "stopped 0"]

    asyncio.run(scene())


def test_an_update_that_fails_while_the_run_stops_is_raised() -> None:
    async def scene() -> None:
        parts = Parts("update 1")
        parts.failure = DivergedError("not finite")
        assert await cancelled(parts) is parts.failure
        assert parts.calls == [*whole(0), *whole(1)[:3]]

    asyncio.run(scene())


@pytest.mark.parametrize("call", ["collect 0", "check 0", "update 0", "publish", "after 0"])
def test_a_failure_is_raised_as_itself_and_writes_no_checkpoint(call: str) -> None:
    async def scene() -> None:
        parts = Parts(call)
        parts.failure = DivergedError("not finite")
        parts.go.set()
        with pytest.raises(DivergedError):
            await train(parts.run)
        assert parts.calls == whole(0)[: whole(0).index(call) + 1]

    asyncio.run(scene())


def test_a_resumed_run_starts_at_its_step() -> None:
    async def scene() -> None:
        parts = Parts(steps=5, step=3)
        assert await train(parts.run) == 5
        assert parts.calls == [*whole(3), *whole(4)]
        ended = Parts(steps=5, step=5)
        assert await train(ended.run) == 5 and ended.calls == []

    asyncio.run(scene())


def test_a_run_that_is_done_takes_no_step() -> None:
    async def scene() -> None:
        parts = Parts(step=2)
        parts.run.done = True
        assert await train(parts.run) == 2 and parts.calls == []

    asyncio.run(scene())
