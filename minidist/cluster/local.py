"""A role in this process, whose calls are timed as those of an actor are."""

from collections.abc import Callable
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

from minidist.cluster.residency import Sleeper
from minidist.concurrency import briefly
from minidist.run.timeline import Calls, SpanLog


class Local:
    """Stands for the object that `start` makes: its verbs are timed, all else is the object's own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._log = SpanLog()
        self._role: Any = None
        self._sleeper = Sleeper()

    async def start(self, make: Callable[..., Any], **arguments: Any) -> None:
        with self._log.call("start"):
            self._role = await briefly(make, **arguments)

    async def ask(self, question: Callable[..., Any], **arguments: Any) -> Any:
        """The answer of a function that runs beside the role."""
        return await briefly(question, **arguments)

    async def sleep(self) -> None:
        await self._sleeper.turn(self._role, "sleep")

    async def wake(self) -> None:
        await self._sleeper.turn(self._role, "wake")

    def calls(self) -> Calls:
        """When the role worked, since this was last asked."""
        return self._log.take()

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._role, verb)
        if isasyncgenfunction(found):

            @wraps(found)
            async def each(*arguments: Any, **options: Any) -> Any:
                self._sleeper.check(verb)
                with self._log.call(verb):
                    async for result in found(*arguments, **options):
                        yield result

            return each
        if not iscoroutinefunction(found):
            return found

        @wraps(found)
        async def call(*arguments: Any, **options: Any) -> Any:
            self._sleeper.check(verb)
            with self._log.call(verb):
                return await found(*arguments, **options)

        return call
