"""The members of a pool, of which some may be lost for a while: who can work now, and who takes over from one that is lost."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from minidist.cluster.supervision import NoRoomError, Supervised
from minidist.concurrency import deal
from minidist.errors import ActorLostError, RoleError

M = TypeVar("M")
B = TypeVar("B")
T = TypeVar("T")


class AtOnce:
    """A supervised role whose losses are raised at once, while it is started again: another one takes its work."""

    def __init__(self, member: Supervised) -> None:
        self._member = member

    async def stream(self, *arguments: Any) -> AsyncGenerator[Any, None]:
        """What the role's `stream` yields."""
        role = await self._member.recovered()
        try:
            async with aclosing(role.stream(*arguments)) as items:
                async for item in items:
                    yield item
        except RoleError as error:
            raise await self._member.lose(role, error) from error

    def __getattr__(self, verb: str) -> Any:
        getattr(self._member.role, verb)  # so that a verb that the role has not is missed here too

        async def call(*arguments: Any, **options: Any) -> Any:
            role = await self._member.recovered()
            try:
                return await getattr(role, verb)(*arguments, **options)
            except RoleError as error:
                raise await self._member.lose(role, error) from error

        return call


class Roster(Generic[M]):
    """Who does the work of a pool.

    Args:
        members: of the pool; one that is given up leaves this list.
        waits: a member that is lost is waited for, so that the same member does the same work in every run. Otherwise another
            one does it.
    """

    def __init__(self, members: list[M], *, waits: bool = False) -> None:
        self.members = members
        self._waits = waits

    def present(self) -> list[M]:
        """The members that work, or are waited for; all where none works now."""
        for member in list(self.members):
            self._leave_out(member)
        if self._waits:
            return list(self.members)
        return [member for member in self.members if is_ready(member)] or list(self.members)

    def asked(self, member: M) -> M:
        """The member as the pool asks it: one of several raises its loss at once, where another may take its work."""
        if self._waits or len(self.members) == 1 or not isinstance(member, Supervised):
            return member
        return AtOnce(member)  # type: ignore[return-value]

    async def deal(self, items: Sequence[B], call: Callable[[M, Sequence[B]], Awaitable[list[T]]], *, each: int = 1) -> list[T]:
        """As `concurrency.deal`, to the members that work; the share of one that is lost is dealt to others."""

        async def dealt(members: Sequence[M], items: Sequence[B]) -> list[T]:
            return await deal(members, items, share, each=each)

        async def share(member: M, part: Sequence[B]) -> list[T]:
            return await self.handed_on(member, lambda member: call(member, part), lambda members: dealt(members, part))

        return await dealt(self.present(), items)

    async def handed_on(self, member: M, call: Callable[[M], Awaitable[T]], others: Callable[[list[M]], Awaitable[T]]) -> T:
        """The result of a member's call, or of others where it is lost."""
        try:
            return await call(self.asked(member))
        except ActorLostError as error:
            return await others(await self.others(error))

    async def others(self, error: ActorLostError) -> list[M]:
        """Who takes over the work of the member that raised this: members that are ready, or the first one to be. Raises the
        error where the pool's members are not supervised."""
        if not any(isinstance(member, Supervised) for member in self.members):
            raise error
        while not (ready := [member for member in self.present() if is_ready(member)]):
            await self.first_to_recover()
        return ready

    async def first_to_recover(self) -> None:
        """Wait until a member works, or is given up. Raises ActorLostError where none will."""
        waiting = [asyncio.ensure_future(member.recovered()) for member in self.members if isinstance(member, Supervised)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            ended = await asyncio.gather(*waiting, return_exceptions=True)
        self.present()
        if all(isinstance(member, Supervised) and member.bare and not member.restarting for member in self.members):
            raise next(error for error in ended if isinstance(error, ActorLostError))

    def _leave_out(self, member: M) -> None:
        """Go on without a member for which the cluster has no room. Raises its error where it was lost too often, or where it
        is the last one."""
        if not isinstance(member, Supervised) or member.failed is None:
            return
        if not isinstance(member.failed, NoRoomError) or self.members == [member]:
            raise member.failed
        self.members.remove(member)  # type: ignore[arg-type]
        member.restarts.give_up(member.name, member.failed)


def is_ready(member: Any) -> bool:
    """Whether a member of a pool can work now; one that is not supervised always can."""
    return not isinstance(member, Supervised) or member.ready


def present_role(member: Any) -> Any:
    """A member in its present process; one that is not supervised as it is."""
    return member.role if isinstance(member, Supervised) else member


async def recovered(member: Any) -> Any:
    """A member that works, in its present process; see `Supervised.recovered`."""
    return await member.recovered() if isinstance(member, Supervised) else member


async def standing(members: list[M]) -> list[M]:
    """The members of a pool that can take weights: all but those that are being started again, which are waited for where there
    is no other. One for which the cluster has no room leaves the list. Raises ActorLostError where none is left."""
    roster = Roster(members)
    roster.present()
    found = [member for member in members if not (isinstance(member, Supervised) and member.restarting)]
    if not found:
        starting = [member.started() for member in members if isinstance(member, Supervised)]
        await asyncio.gather(*starting, return_exceptions=True)
        roster.present()
        found = list(members)
    return found


async def any_lost(members: Sequence[Any], roles: Sequence[Any]) -> bool:
    """Whether one of the members, which had these roles, is lost, or was: that may be why others have failed."""
    supervised = [(member, role) for member, role in zip(members, roles, strict=True) if isinstance(member, Supervised)]
    actors = [actor for member, _ in supervised for actor in member.actors]
    await asyncio.gather(*(actor.check() for actor in actors), return_exceptions=True)
    return any(member.role is not role for member, role in supervised) or any(actor.lost is not None for actor in actors)
