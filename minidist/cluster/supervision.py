"""Actors that are lost are started again: a role behind its own verbs whose process may change.

An actor is lost (`ActorLostError`) when its process or its engine's has died, when it gives no sign of life, or when a call
passed its deadline. A call of a `Supervised` role waits until the role has been started again, and is then made again, whole: a
result is returned once or not at all, so that nothing is counted twice.
"""

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from minidist.errors import ActorLostError, MinidistError, RoleError
from minidist.run.tracking import log

Renewal = Callable[[Any], Awaitable[bool]]
"""Gives a role that was made anew the weights that it must have; False where it cannot, and the next publication will."""

_ONCE = frozenset(("take_turns", "end_turns", "join", "receive", "finish"))
"""Verbs that go on from earlier calls of the same process: never made again in another one."""


class NoRoomError(ActorLostError):
    """A lost actor cannot be started again: the cluster has lost the node that it was on, and no other has room."""


class Restarts:
    """The actors that were started again, and those that were given up.

    Args:
        most: how often one actor may be started again.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._tried: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._since = 0
        self._given_up: list[str] = []

    def refused(self, actor: str, cause: ActorLostError) -> ActorLostError | None:
        """Counts a loss: the error where the actor was lost more often than may be, None where it is to be started again."""
        self._tried[actor] += 1
        if (tried := self._tried[actor]) <= self._most:
            return None
        text = f"the {actor} was lost {tried} times, and cluster.supervision.restarts is {self._most}"
        return ActorLostError(f"{text}; its last loss: {cause}", actor)

    def add(self, actor: str, cause: object, seconds: float) -> None:
        """An actor works again, `seconds` after it was lost."""
        self._done[actor] += 1
        self._since += 1
        log.warning("the %s was started again in %.1f s; cause: %s", actor, seconds, cause)

    def give_up(self, actor: str, cause: object) -> None:
        """The run goes on without an actor."""
        self._given_up.append(actor)
        log.warning("the run goes on without the %s: %s", actor, cause)

    def figures(self, members: "Iterable[Supervised]") -> dict[str, float]:
        """Metrics: restarts since this was last asked, and how many of the `members` are left of each role of which one was
        given up."""
        figures = {"cluster/restarts": float(self._since)} if self._since else {}
        self._since = 0
        left = Counter(_role(member.name) for member in members if member.failed is None)
        return figures | {f"cluster/{role}_actors": float(left[role]) for role in map(_role, self._given_up)}

    def summary(self) -> dict[str, Any]:
        """For the run's summary, `supervision`: restarts of each actor, and actors that were given up; empty without any."""
        facts = {"restarts": dict(self._done), "given_up": list(self._given_up)}
        found = {name: value for name, value in facts.items() if value}
        return {"supervision": found} if found else {}


@dataclass(frozen=True)
class Recipe:
    """How a role is made.

    Args:
        make, arguments: `make(**arguments)` is the role, or one rank of it, in its process.
        replace: `await replace(actors, make, **arguments)` are new processes in the place of lost ones, started likewise.
        assemble: the role that the processes are together.
    """

    make: Callable[..., Any]
    arguments: dict[str, Any]
    replace: Callable[..., Awaitable[list[Any]]]
    assemble: Callable[[list[Any]], Any] = itemgetter(0)


class Supervised:
    """A role behind its own verbs; when it is lost, it is started again, and a call that it owes is made again.

    Args:
        actors: the processes of the role, as hosted: one, or the ranks of a group.
        recipe: how they are made.
        restarts: counts them, and ends them.
    """

    def __init__(self, actors: Sequence[Any], recipe: Recipe, restarts: Restarts) -> None:
        self.actors = list(actors)
        self.role: Any = recipe.assemble(self.actors)
        """The role in its present processes, which a caller of several calls that belong together holds on to."""
        self.restarts = restarts
        self.renewal: Renewal | None = None
        """None: the weights are those that the role is made with."""
        self.bare = False
        """The role was made anew, and has not the weights that it must have."""
        self.failed: ActorLostError | None = None
        """Why the role is not started again."""
        self._recipe = recipe
        self._starting: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Of the first process."""
        return self.actors[0].name

    @property
    def restarting(self) -> bool:
        """Whether the role is being started again, or waits for its weights. One that is found lost begins to be."""
        lost = next((actor.lost for actor in self.actors if getattr(actor, "lost", None) is not None), None)
        if lost is not None and self._recovering is None and self.failed is None:
            self._starting = asyncio.create_task(self._start_again(lost))
            self._recovering = asyncio.create_task(self._recover(self._starting, lost))
        return self._recovering is not None

    @property
    def ready(self) -> bool:
        """Whether the role can work now."""
        return not self.restarting and not self.bare and self.failed is None

    async def started(self) -> Any:
        """The role in its present processes, with whatever weights, once they are there. Raises ActorLostError."""
        if self.restarting and self._starting is not None:
            await asyncio.wait([self._starting])
        if self.failed is not None:
            raise self.failed
        return self.role

    async def recovered(self) -> Any:
        """The role, once it works. Raises ActorLostError where it cannot."""
        while self.restarting and self._recovering is not None:
            await asyncio.wait([self._recovering])
        if self.failed is not None:
            raise self.failed
        if self.bare:
            text = "was started again, and the weights published last are no longer there to give to it"
            raise ActorLostError(f"the {self.name} {text}; give the same command again to resume", self.name)
        return self.role

    async def lose(self, role: Any, error: RoleError) -> ActorLostError:
        """The loss that an error of `role`, which was this one, comes of. Raises the error where no process is lost: that of a
        group's rank may be that another one has gone."""
        if role is self.role and len(self.actors) > 1 and not isinstance(error, ActorLostError):
            await asyncio.gather(*(actor.check() for actor in self.actors), return_exceptions=True)
        if role is self.role and not self.restarting and self.failed is None:
            raise error
        return error if isinstance(error, ActorLostError) else ActorLostError(str(error), self.name)

    async def start(self, make: Callable[..., Any], **arguments: Any) -> None:
        """Make another role in the same processes."""
        await self.started()
        self._recipe = dataclasses.replace(self._recipe, make=make, arguments=arguments)
        self.renewal, self.bare = None, False
        await self._call("start", make, **arguments)

    async def load(self, weights: Any) -> None:
        """Replace the weights, now and whenever the role is made anew."""
        await self.claim(_loading(weights))
        while True:
            role = await self.started()
            try:
                await role.load(weights)
            except RoleError as error:
                await self.lose(role, error)
            else:
                self.bare = self.bare and role is not self.role
                return

    async def claim(self, renewal: Renewal) -> None:
        """From now on, `renewal` gives the weights to a role that was made anew. Waits until an earlier one has ended."""
        earlier = self._recovering if self.renewal not in (None, renewal) else None
        self.renewal = renewal
        if earlier is not None:
            await asyncio.wait([earlier])

    async def stream(self, *arguments: Any) -> AsyncGenerator[tuple[int, Any], None]:
        """What the role's `stream` yields, each index once. One that was started again gets the whole call again."""
        seen = set[int]()
        while True:
            role = await self.recovered()
            try:
                async with aclosing(role.stream(*arguments)) as items:
                    async for index, item in items:
                        if index not in seen:
                            seen.add(index)
                            yield index, item
                return
            except RoleError as error:
                await self.lose(role, error)

    def __getattr__(self, verb: str) -> Any:
        getattr(self.role, verb)  # a verb that the role has not is missed here too
        return partial(self._call, verb)

    def __reduce__(self) -> Any:
        """Another process calls the role as it is now."""
        return self.role.__reduce__()

    async def end(self) -> None:
        """Start nothing again."""
        tasks = [task for task in (self._starting, self._recovering) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        while True:
            role = await self.recovered()
            try:
                return await getattr(role, verb)(*arguments, **options)
            except RoleError as error:
                loss = await self.lose(role, error)
                if verb in _ONCE:
                    raise loss from error

    async def _start_again(self, lost: ActorLostError) -> None:
        """New processes in the place of the lost ones, however often they are lost as they start."""
        recipe = self._recipe
        while (refusal := self.restarts.refused(self.name, lost)) is None:
            try:
                self.actors = await recipe.replace(self.actors, recipe.make, **recipe.arguments)
            except NoRoomError as error:
                refusal = error
                break
            except ActorLostError as error:
                lost = error
            except MinidistError as error:
                text = f"the {self.name} was lost ({lost}) and could not be started again: {error}"
                refusal = ActorLostError(text, self.name)
                break
            else:
                self.role, self.bare = recipe.assemble(self.actors), self.renewal is not None
                return
        self.failed = refusal

    async def _recover(self, starting: "asyncio.Task[None]", lost: ActorLostError) -> None:
        """Wait for the processes, and give the role its weights."""
        began = time.monotonic()
        try:
            await starting
            while self.failed is None and self.bare and (renewal := self.renewal) is not None:
                renewed = await renewal(self.role)
                if renewal == self.renewal:  # else other weights were published meanwhile
                    self.bare = self.bare and not renewed
                    break
            if self.failed is None:
                self.restarts.add(self.name, lost, time.monotonic() - began)
        except ActorLostError:
            pass  # lost again, which `restarting` finds
        except MinidistError as error:
            text = f"the {self.name} was started again, and did not take its weights: {error}"
            self.failed = ActorLostError(text, self.name)
        finally:
            self._starting = self._recovering = None


def _role(actor: str) -> str:
    """The role of an actor, by its name."""
    return actor.split(" ")[0]


def _loading(weights: Any) -> Renewal:
    async def load(role: Any) -> bool:
        await role.load(weights)
        return True

    return load
