"""Roles that share devices hold them in turn: one kind of role is resident, and the others keep their memory in the host's.

Each call that computes makes its role resident first, so that the loop and its sources need not know who shares devices.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, cast

from minidist.concurrency import together
from minidist.config.cluster import Role
from minidist.errors import ActorLostError, RoleError

_COMPUTING = frozenset(
    "generate stream mix score extend update measure weights probe load save save_state resume keep keep_scores".split()  # noqa: SIM905
)
"""Verbs for which a role needs its devices."""


class Residency:
    """Which kind of role is on the shared devices."""

    def __init__(self) -> None:
        self._members: dict[Role, list[Any]] = {}
        self._resident: Role | None = None
        self._calls = 0
        """Calls of the resident kind that are under way."""
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def of(self, kind: Role) -> AsyncGenerator[None, None]:
        """Inside, roles of this kind are resident. Waits until no call of another kind is under way; puts that kind to sleep,
        and wakes this one. Raises RoleError if there is no room for it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._resident == kind or not self._calls)
            if self._resident != kind:
                await self._swap(kind)
            self._calls += 1
        try:
            yield
        finally:
            async with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def join(self, kind: Role, role: Any) -> None:
        """A role that has started while its kind was resident."""
        self._members.setdefault(kind, []).append(role)

    def leave(self, role: Any) -> None:
        """A role that ends."""
        for members in self._members.values():
            members[:] = [member for member in members if member is not role]

    async def _swap(self, kind: Role) -> None:
        """A call that is cancelled here leaves nobody resident; the next one puts all others to sleep again, which is idle for
        those that are asleep."""
        self._resident = None
        await together(
            self._turn(member, "sleep") for other in self._members if other != kind for member in self._members[other]
        )
        try:
            await together(self._turn(member, "wake") for member in self._members.get(kind, []))
        except RoleError as error:
            cure = "lower gpu_memory_utilization or micro_batch_tokens, or give the role GPUs of its own (cluster.ROLE.gpus)"
            raise RoleError(f"no room on the shared devices when the {kind} came back to them; {cure} ({error})") from error
        self._resident = kind

    async def _turn(self, member: Any, verb: str) -> None:
        """`sleep` or `wake`; a lost member has no memory on a device, and its own next call says that it is lost."""
        with suppress(ActorLostError):
            await getattr(member, verb)()


class ResidentRole:
    """A role behind its own verbs; those that compute make it resident."""

    def __init__(self, role: Any, kind: Role, residency: Residency) -> None:
        self.role = role
        self._kind: Role = kind
        self._residency = residency

    def resident(self) -> Any:
        """`async with role.resident()`: the role keeps its devices from one call to the next."""
        return self._residency.of(self._kind)

    async def start(self, *arguments: Any, **options: Any) -> None:
        async with self.resident():
            await self.role.start(*arguments, **options)
            self._residency.leave(self.role)
            self._residency.join(self._kind, self.role)

    def leave(self) -> Any:
        """The role as it is, which ends."""
        self._residency.leave(self.role)
        return self.role

    def __reduce__(self) -> Any:
        """Another process calls the role as it is."""
        return self.role.__reduce__()

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self.role, verb)
        if verb not in _COMPUTING:
            return found
        return self._each(found) if verb == "stream" else self._call(found)

    def _call(self, found: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> Any:
            async with self.resident():
                return await found(*arguments, **options)

        return call

    def _each(self, found: Callable[..., Any]) -> Callable[..., Any]:
        async def each(*arguments: Any, **options: Any) -> Any:
            async with self.resident(), aclosing(cast(AsyncGenerator[Any, None], found(*arguments, **options))) as items:
                async for item in items:
                    yield item

        return each


class Sleeper:
    """Whether the role of an actor is asleep. A call that computes then is an error: its memory is not on the device."""

    def __init__(self) -> None:
        self.asleep = False

    def check(self, verb: str) -> None:
        """Raise RoleError if the role must not run this verb."""
        if self.asleep and verb in _COMPUTING:
            raise RoleError(f"a role was asked for {verb} while its memory was not on its device")

    async def turn(self, role: Any, verb: str) -> None:
        """`sleep` or `wake`, once."""
        if self.asleep == (verb == "sleep"):
            return
        await getattr(role, verb)()
        self.asleep = verb == "sleep"
