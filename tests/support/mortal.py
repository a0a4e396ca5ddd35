"""Processes that die: a role behind the face of `cluster.remote.Remote`, and a cluster that starts it again."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from minidist.cluster.supervision import NoRoomError, Recipe, Restarts, Supervised
from minidist.errors import ActorLostError


class Mortal:
    """A process that holds a role. Once it has died, every call raises ActorLostError.

    Args:
        name: of the actor.
        role: its verbs.
        life: which process in the actor's place this is, from 0 on.
    """

    def __init__(self, name: str, role: Any, life: int = 0) -> None:
        self.name, self.role, self.life = name, role, life
        self.keeper = f"{name}, life {life + 1}" if life else name
        self.lost: ActorLostError | None = None
        self.dies_in: str | None = None
        """The verb whose next call does its work, and gives no answer; of `stream`, the first item is given."""
        self.calls: list[str] = []

    def die(self) -> None:
        self.lost = ActorLostError(f"the {self.name} died", self.name)

    async def check(self) -> None:
        self._live()

    async def start(self, make: Callable[..., Any], **arguments: Any) -> None:
        self.role = make(**arguments)

    async def stream(self, *arguments: Any) -> AsyncGenerator[Any, None]:
        self._live()
        self.calls.append("stream")
        async for item in self.role.stream(*arguments):
            self._live()
            yield item
            if self.dies_in == "stream":
                self.die()

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self.role, verb)

        async def call(*arguments: Any, **options: Any) -> Any:
            self._live()
            self.calls.append(verb)
            result = await found(*arguments, **options)
            if self.dies_in == verb:
                self.die()
            self._live()
            return result

        return call

    def _live(self) -> None:
        if self.lost is not None:
            raise self.lost


class Place:
    """The processes of one cluster, in the order of their starts.

    Attributes:
        gate: a start waits until it is set.
        room: whether a lost process can be started again.
        stillborn: processes that die as they start again, before one that lives.
    """

    def __init__(self, *, restarts: int = 5) -> None:
        self.restarts = Restarts(restarts)
        self.started: list[Mortal] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.room = True
        self.stillborn = 0

    def supervise(self, name: str, make: Callable[..., Any], **arguments: Any) -> Any:
        first = Mortal(name, make(**arguments))
        self.started.append(first)
        return Supervised([first], Recipe(make, arguments, self._replace), self.restarts)

    async def _replace(self, actors: Sequence[Mortal], make: Callable[..., Any], **arguments: Any) -> list[Mortal]:
        [old] = actors
        await self.gate.wait()
        if not self.room:
            raise NoRoomError(f"no room for the {old.name}", old.name)
        if self.stillborn:
            self.stillborn -= 1
            raise ActorLostError(f"the {old.name} died in start", old.name)
        new = Mortal(old.name, make(**arguments), old.life + 1)
        self.started.append(new)
        return [new]
