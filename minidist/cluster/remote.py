"""A role in a Ray actor, behind the verbs of the role."""

import asyncio
import gc
import os
import tempfile
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from minidist.cluster.joined import SharedDirectory, name_interfaces
from minidist.cluster.kept import keep
from minidist.cluster.residency import Sleeper
from minidist.concurrency import briefly
from minidist.errors import ActorLostError, MinidistError, RoleError
from minidist.run.garbage import no_collection
from minidist.run.timeline import Calls, Received, SpanLog
from minidist.types import TeacherScores


class Remote:
    """Proxy of the object in an actor: `await remote.verb(...)` runs `verb` in the actor.

    minidist's errors are raised as themselves, all others as a RoleError that names the role. `output`: where people find what
    the actor has printed.
    """

    def __init__(self, name: str, actor: Any, output: str = "the run's logs/") -> None:
        self.name = name
        self.actor = actor
        self.output = output
        self._received = Received()

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.name, self.actor, self.output)

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            return await self._await(self.actor.answer, verb, *arguments, **options)

        return call

    def calls(self) -> Calls:
        """When the actor worked for this proxy, since this was last asked; its answers bring that with them."""
        return self._received.take()

    async def alive(self, timeout_s: float) -> bool:
        """Whether the actor answers in time."""
        try:
            await asyncio.wait_for(self.actor.under_way.remote(), timeout_s)
        except (TimeoutError, RayActorError):
            return False
        return True

    async def keep(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """The result as a Ray reference, which other actors read without passing through this process."""
        return await self._await(self.actor.keep, verb, *arguments, **options)

    async def keep_scores(self, *arguments: Any) -> list[TeacherScores]:
        """The scores of a teacher's `score`; large ones stay in the object store, and their references are returned."""
        return await self._await(self.actor.keep_scores, "score", self.name, *arguments)

    async def stream(self, *arguments: Any) -> AsyncGenerator[Any, None]:
        """What the role's `stream` yields, as it comes. Closing the iterator closes the role's."""
        with self._numbered("stream") as number:
            async for item in self.actor.stream.options(num_returns="streaming").remote(number, *arguments):
                yield await item

    async def _await(self, method: Any, verb: str, *arguments: Any, **options: Any) -> Any:
        with self._numbered(verb) as number:
            # Spread, not packed in a tuple: Ray resolves references only where they are direct arguments.
            result, calls = await method.remote(number, verb, *arguments, **options)
        self._received.add(calls)
        return result

    @contextmanager
    def _numbered(self, verb: str) -> Iterator[str]:
        """The number of a call that is made inside; errors are raised as the class says."""
        number = uuid.uuid4().hex
        try:
            with self._received.call(number, verb):
                yield number
        except (asyncio.CancelledError, GeneratorExit):
            # So that the role stops: no caller waits for the result. Ray's own cancellation loses some calls of async actors.
            self.actor.cancel.remote(number)
            raise
        except RayTaskError as error:
            if isinstance(error.cause, MinidistError):
                raise error.cause from None
            raise RoleError(f"the {self.name} failed in {verb}: {type(error.cause).__name__}: {error.cause}") from error
        except RayActorError as error:
            reason = str(error).strip().splitlines()[0]
            text = f"the {self.name} died in {verb}: {reason}; its output is in {self.output}"
            raise ActorLostError(text, self.name) from error


_REMEMBERED = 10_000


class Host:
    """The actor: holds one role and runs its verbs.

    Args:
        environment: variables that are set before the role is imported.
        shared: what the nodes of a joined cluster share; None on a cluster of this run alone.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, shared: SharedDirectory | None = None) -> None:
        os.environ.update(environment or {})
        self._shared = shared
        self._sleeper = Sleeper()
        tempfile.tempdir = None  # Ray has looked for it already
        self._role: Any = None
        self._log = SpanLog()
        self._running: dict[str, asyncio.Task[Any]] = {}
        """The calls under way, by their numbers."""
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        """Numbers of calls that were cancelled before they began, or after they ended; the oldest are forgotten."""

    async def call(self, number: str, verb: str, *arguments: Any, **options: Any) -> Any:
        with self._numbered(number), self._log.call(verb):
            return await self._call(verb, *arguments, **options)

    async def answer(self, number: str, verb: str, *arguments: Any, **options: Any) -> tuple[Any, Calls]:
        """The result of a call, and when this call and others ran that have ended since the last answer."""
        return await self.call(number, verb, *arguments, **options), self._log.take()

    async def keep(self, number: str, verb: str, *arguments: Any, **options: Any) -> tuple[Any, Calls]:
        """Like `answer`, but the result stays in the object store, and its reference is returned."""
        result = await self.call(number, verb, *arguments, **options)
        return None if result is None else ray.put(result), self._log.take()

    async def keep_scores(self, number: str, verb: str, keeper: str, *arguments: Any) -> tuple[list[TeacherScores], Calls]:
        """Like `answer`, but large scores stay in the object store, in the name of their keeper."""
        scores = await self.call(number, verb, *arguments)
        return [keep(each, keeper) for each in scores], self._log.take()

    async def stream(self, number: str, *arguments: Any) -> AsyncGenerator[Any, None]:
        """What the role's `stream` yields."""
        self._sleeper.check("stream")
        with self._numbered(number), self._log.call("stream"):
            async with aclosing(self._role.stream(*arguments)) as items:
                async for item in items:
                    yield item

    async def cancel(self, number: str) -> None:
        """Cancel a call, which may be under way or still to come."""
        if number in self._running:
            self._running[number].cancel()
            return
        self._cancelled[number] = None
        while len(self._cancelled) > _REMEMBERED:
            self._cancelled.popitem(last=False)

    async def under_way(self) -> int:
        """Number of calls under way."""
        return len(self._running)

    @contextmanager
    def _numbered(self, number: str) -> Iterator[None]:
        """The running task as the call `number`, which `cancel` finds. Raises CancelledError for a cancelled call."""
        if number in self._cancelled:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._running[number] = task
        try:
            yield
        finally:
            del self._running[number]

    async def _call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        if verb == "start":
            await self._clear()
            if self._shared is not None:
                node = ray.util.get_node_ip_address()
                self._shared.enter(node)
                name_interfaces(node)
            with no_collection():
                self._role = await briefly(arguments[0], **options)
            return None
        if verb == "ask":
            return await briefly(arguments[0], **options)
        if verb in ("sleep", "wake"):
            return await self._sleeper.turn(self._role, verb)
        self._sleeper.check(verb)
        return await getattr(self._role, verb)(*arguments, **options)

    async def _clear(self) -> None:
        """Close the last role and free its memory before the next role is made."""
        self._sleeper = Sleeper()
        if self._role is not None:
            await self._role.close()
            self._role = None
            gc.collect()
