"""Calls of a role in an actor, as the actor runs them: each has a number, by which it is cancelled."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from minidist.cluster.remote import Host, Process, Remote
from minidist.errors import ActorLostError, RoleError


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


class Verb:
    """A method of Ray's handle: `remote` gives what can be awaited."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def options(self, **_: Any) -> "Verb":
        return self

    def remote(self, *arguments: Any, **options: Any) -> Any:
        return self._call(*arguments, **options)


class HostHere(Host):
    """Beside no Ray."""

    async def beat(self) -> Process:
        return Process("node", 1, None)


class Handle:
    """Ray's handle of a host in this process; `raises`: what every answer is."""

    def __init__(self, raises: Exception | None = None) -> None:
        self._host, self._raises = HostHere(), raises

    def __getattr__(self, verb: str) -> Verb:
        async def call(*arguments: Any, **options: Any) -> Any:
            if self._raises is not None:
                raise self._raises
            return await getattr(self._host, verb)(*arguments, **options)

        return Verb(lambda *arguments, **options: asyncio.ensure_future(call(*arguments, **options)))


async def remote(role: Any, **limits: Any) -> Remote:
    found = Remote("rollout 1", Handle(), start_s=60, **limits)
    await found.start(lambda: role)
    return found


def test_a_call_that_passes_its_deadline_loses_the_actor() -> None:
    async def run() -> None:
        actor = await remote(Role(), call_s=0.05)
        assert await actor.wait(0) == "done" and actor.lost is None
        other = asyncio.ensure_future(actor.wait(600))
        with pytest.raises(ActorLostError, match=r"the rollout 1 did not end wait in 0.05 s; its output is in") as raised:
            await actor.wait(600)
        assert raised.value.actor == "rollout 1"
        for call in (other, actor.wait(0), actor.beat()):
            with pytest.raises(ActorLostError, match="did not end wait"):
                await call

    asyncio.run(run())


def test_calls_under_way_end_when_the_actor_is_lost() -> None:
    async def run() -> None:
        actor = await remote(Role())
        call = asyncio.ensure_future(actor.wait(600))
        await asyncio.sleep(0.01)
        actor.lose("hangs")
        with pytest.raises(ActorLostError, match="the rollout 1 hangs"):
            await asyncio.wait_for(call, 5)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ActorLostError("a process of its vLLM engine has died"), True),
        (type("EngineDeadError", (Exception,), {})("EngineCore"), True),
        (type("AcceleratorError", (RuntimeError,), {})("an illegal memory access"), True),
        (ActorLostError("the rollout 0 died", "rollout 0"), False),
        (RoleError("no room"), False),
        (ValueError("a prompt is too long"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_errors_of_a_role_mean_that_its_actor_is_of_no_use(error: Exception, lost: bool) -> None:
    async def run() -> None:
        actor = Remote("rollout 1", Handle(RayTaskError("wait", "", error)))
        with pytest.raises(RoleError) as raised:
            await actor.wait(1)
        assert (actor.lost is not None) == lost
        if lost:
            assert isinstance(raised.value, ActorLostError) and raised.value.actor == "rollout 1"
            assert str(raised.value).startswith("the rollout 1 failed in wait: ") and str(error) in str(raised.value)

    asyncio.run(run())


def test_the_proxy_of_an_actor_that_was_replaced_goes_on_with_its_record_and_keeps_scores_of_its_own() -> None:
    async def run() -> None:
        first = await remote(Role())
        await first.wait(0)
        second = Remote(first.name, Handle(), before=first)
        await second.start(Role)
        await second.wait(0)
        assert [span.name for span in second.calls().done] == ["start", "wait"] * 2
        assert (first.keeper, second.keeper) == ("rollout 1", "rollout 1, life 2")

    asyncio.run(run())
