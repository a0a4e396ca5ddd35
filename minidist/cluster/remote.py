"""A role in a Ray actor, behind the verbs of the role."""

import asyncio
import gc
import os
import tempfile
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from minidist.cluster.joined import SharedDirectory, name_interfaces
from minidist.cluster.kept import keep
from minidist.cluster.residency import Sleeper
from minidist.cluster.scratch import start_time
from minidist.concurrency import briefly
from minidist.errors import ActorLostError, MinidistError, RoleError
from minidist.run.garbage import no_collection
from minidist.run.timeline import Calls, Received, SpanLog
from minidist.types import TeacherScores

T = TypeVar("T")

HEARTBEAT = "heartbeat"
"""Concurrency group of the method that gives a sign of life: it has a thread of its own."""
_DEAD_ENGINE = ("EngineDeadError", "AcceleratorError")
"""Errors of vLLM and torch after which an engine, or a process that uses a device, is of no use any more."""
_CHECK_S = 10.0


@dataclass(frozen=True)
class Process:
    """The process of an actor: Ray's id of its node, its own id, and when it was started (`scratch.start_time`)."""

    node: str
    pid: int
    started: str | None


class Remote:
    """Proxy of the object in an actor: `await remote.verb(...)` runs `verb` in the actor.

    minidist's errors are raised as themselves, all others as a RoleError that names the role. Where the actor is lost,
    ActorLostError is raised, by the calls under way and by all later ones.

    Args:
        name: of the actor.
        actor: Ray's handle.
        output: where people find what the actor has printed.
        call_s: longest call, and longest wait for the next item of a stream, seconds; None: no limit.
        start_s: likewise, of `start`; None: the actor is not supervised.
        before: the proxy of the lost actor in whose place this one is; its record goes on.
    """

    def __init__(
        self,
        name: str,
        actor: Any,
        output: str = "the run's logs/",
        *,
        call_s: float | None = None,
        start_s: float | None = None,
        before: "Remote | None" = None,
    ) -> None:
        self.name = name
        self.actor = actor
        self.output = output
        self.lost: ActorLostError | None = None
        """Why the actor is of no use any more."""
        self.starting = 0
        """Calls of `start` under way, in which the actor may give no sign of life."""
        self.process: Process | None = None
        """The actor's, once it has given a sign of life."""
        self._call_s = call_s
        self._start_s = start_s
        self._lives: int = 0 if before is None else before._lives + 1
        self._received = Received() if before is None else before._received
        self._waiting: set[asyncio.Future[None]] = set()
        """Of the calls under way: done when the actor is lost."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.name, self.actor, self.output)

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            return await self._await(self.actor.answer, verb, *arguments, **options)

        return call

    @property
    def keeper(self) -> str:
        """Name of the process, with which what it keeps is lost."""
        return f"{self.name}, life {self._lives + 1}" if self._lives else self.name

    def calls(self) -> Calls:
        """When the actor worked for this proxy, since this was last asked; its answers bring that with them."""
        return self._received.take()

    async def start(self, make: Callable[..., Any], **arguments: Any) -> None:
        """Make the role."""
        self.starting += 1
        try:
            await self._await(self.actor.answer, "start", make, **arguments)
            await self.beat()
        finally:
            self.starting -= 1

    async def beat(self) -> None:
        """Get a sign of life, however long it takes."""
        with self._translated("a sign of life"):
            self.process = await self.actor.beat.remote()

    async def check(self) -> None:
        """Get a sign of life within a few seconds. Raises ActorLostError where the actor is dead, TimeoutError where it does
        not answer yet."""
        async with asyncio.timeout(_CHECK_S):
            await self.beat()

    def lose(self, reason: str) -> ActorLostError:
        """The actor is of no use any more: the error that all its calls raise."""
        if self.lost is None:
            self.lost = ActorLostError(f"the {self.name} {reason}; its output is in {self.output}", self.name)
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)
        return ActorLostError(str(self.lost), self.name)

    async def keep(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """The result as a Ray reference, which other actors read without passing through this process."""
        return await self._await(self.actor.keep, verb, *arguments, **options)

    async def keep_scores(self, *arguments: Any) -> list[TeacherScores]:
        """The scores of a teacher's `score`; large ones stay in the object store, and their references are returned."""
        return await self._await(self.actor.keep_scores, "score", self.keeper, *arguments)

    async def stream(self, *arguments: Any) -> AsyncGenerator[Any, None]:
        """What the role's `stream` yields, as it comes. Closing the iterator closes the role's."""
        with self._numbered("stream") as number:
            items = aiter(self.actor.stream.options(num_returns="streaming").remote(number, *arguments))
            while True:
                try:
                    item = await self._while_alive(_next(items), "stream")
                except StopAsyncIteration:
                    return
                yield item

    async def _await(self, method: Any, verb: str, *arguments: Any, **options: Any) -> Any:
        with self._numbered(verb) as number:
            # Spread, not packed in a tuple: Ray resolves references only where they are direct arguments.
            reference = method.remote(number, verb, *arguments, **options)
            result, calls = await self._while_alive(_awaited(reference), verb)
        self._received.add(calls)
        return result

    async def _while_alive(self, answer: Coroutine[Any, Any, T], verb: str) -> T:
        """The answer of the actor. Raises ActorLostError where the actor is lost before, or where it is late."""
        if self._start_s is None:  # nobody watches it
            return await answer
        limit = self._start_s if verb == "start" else self._call_s
        arriving, lost = asyncio.ensure_future(answer), asyncio.get_running_loop().create_future()
        self._waiting.add(lost)
        try:
            await asyncio.wait({arriving, lost}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if arriving.done():
                return arriving.result()
            raise self.lose("" if limit is None else f"did not end {verb} in {limit:g} s")  # what it was lost by first counts
        finally:
            self._waiting.remove(lost)
            arriving.cancel()

    @contextmanager
    def _numbered(self, verb: str) -> Iterator[str]:
        """The number of a call that is made inside; errors are raised as the class says."""
        number = uuid.uuid4().hex
        try:
            with self._received.call(number, verb), self._translated(verb):
                yield number
        except (asyncio.CancelledError, GeneratorExit):
            # So that the role stops: no caller waits for the result. Ray's own cancellation loses some calls of async actors.
            self.actor.cancel.remote(number)
            raise

    @contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        """Ray's errors are raised as the class says."""
        if self.lost is not None:
            raise self.lose("")
        try:
            yield
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ActorLostError) and not cause.actor:
                raise self.lose(f"failed in {verb}: {cause}") from None
            if isinstance(cause, MinidistError):
                raise cause from None
            text = f"failed in {verb}: {type(cause).__name__}: {cause}"
            if isinstance(cause, RayActorError) or type(cause).__name__ in _DEAD_ENGINE:
                raise self.lose(text) from error
            raise RoleError(f"the {self.name} {text}") from error
        except RayActorError as error:
            raise self.lose(f"died in {verb}: {str(error).strip().splitlines()[0]}") from error
        except ObjectLostError as error:
            text = "something that it was given is lost, since the process that kept it has died"
            raise RoleError(f"the {self.name} failed in {verb}: {text}") from error


async def _awaited(reference: Any) -> Any:
    return await reference


async def _next(items: AsyncIterator[Any]) -> Any:
    return await (await anext(items))


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

    @ray.method(concurrency_group=HEARTBEAT)
    async def beat(self) -> Process:
        """A sign of life."""
        return Process(ray.get_runtime_context().get_node_id(), os.getpid(), start_time(os.getpid()))

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
