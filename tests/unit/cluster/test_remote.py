"""Calls of a role in an actor, as the actor runs them: each has a number, by which it is cancelled."""

import asyncio
import weakref
from collections.abc import AsyncGenerator

import pytest

from minidist.cluster.remote import Host


class Role:
    """Counts the calls that began, and those that ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0

    async def wait(self, seconds: float) -> str:
        self.begun += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.ended += 1
        return "done"


async def hosting() -> tuple[Host, Role]:
    host, role = Host(), Role()
    await host.call("start", "start", lambda: role)
    return host, role


class Cyclic(Role):
    """Refers to itself, as a model with hooks does: only the collector finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.itself = self

    async def close(self) -> None:
        pass


def test_the_memory_of_a_role_is_free_before_the_next_is_made() -> None:
    async def run() -> None:
        host, made = Host(), list[weakref.ref[Cyclic]]()

        def make() -> Cyclic:
            assert all(each() is None for each in made)
            made.append(weakref.ref(role := Cyclic()))
            return role

        for number in range(3):
            await host.call(f"{number}", "start", make)
            await asyncio.sleep(0)  # the loop lets go of the result
        assert len(made) == 3 and made[-1]() is not None

    asyncio.run(run())


def test_a_call_under_way_is_cancelled_and_no_other() -> None:
    async def run() -> None:
        host, role = await hosting()
        calls = [asyncio.ensure_future(host.call(f"{number}", "wait", 600 if number else 0.05)) for number in range(3)]
        await asyncio.sleep(0)
        await host.cancel("2")
        assert await calls[0] == "done"
        with pytest.raises(asyncio.CancelledError):
            await calls[2]
        assert (role.begun, role.ended, await host.under_way()) == (3, 2, 1)
        await host.cancel("1")
        with pytest.raises(asyncio.CancelledError):
            await calls[1]
        assert (role.ended, await host.under_way()) == (3, 0)

    asyncio.run(run())


def test_a_call_that_comes_after_its_cancellation_never_begins() -> None:
    async def run() -> None:
        host, role = await hosting()
        await host.cancel("late")
        with pytest.raises(asyncio.CancelledError):
            await host.call("late", "wait", 0)
        assert role.begun == 0
        assert await host.call("other", "wait", 0) == "done"

    asyncio.run(run())


def test_cancelling_an_ended_call_is_harmless_and_is_forgotten() -> None:
    async def run() -> None:
        host, role = await hosting()
        await host.call("0", "wait", 0)
        for number in range(20_000):
            await host.cancel(f"{number}")
        assert len(host._cancelled) == 10_000
        assert await host.call("new", "wait", 0) == "done" and role.ended == 2

    asyncio.run(run())


class Counting(Role):
    """Yields numbers, the last after a long wait."""

    async def stream(self, first: int, count: int) -> AsyncGenerator[int, None]:
        self.begun += 1
        try:
            for number in range(first, first + count):
                yield number
            await asyncio.sleep(600)
        finally:
            self.ended += 1


def test_a_stream_hands_on_what_comes_and_ends_when_it_is_cancelled_or_closed() -> None:
    async def run() -> None:
        host, role = Host(), Counting()
        await host.call("start", "start", lambda: role)
        closed = host.stream("a", 5, 2)
        assert [await anext(closed), await anext(closed)] == [5, 6]
        await closed.aclose()
        assert (role.begun, role.ended, await host.under_way()) == (1, 1, 0)

        async def consume() -> list[int]:
            return [number async for number in host.stream("b", 0, 3)]

        consumer = asyncio.ensure_future(consume())
        await asyncio.sleep(0.05)
        await host.cancel("b")
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert (role.begun, role.ended, await host.under_way()) == (2, 2, 0)

    asyncio.run(run())
