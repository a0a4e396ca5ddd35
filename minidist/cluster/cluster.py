"""Where the roles live: in Ray actors, or in this process. Every process that a run starts ends with it."""

import asyncio
import operator
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

from minidist.cluster.local import Local
from minidist.cluster.machine import cores
from minidist.cluster.residency import Residency, ResidentRole
from minidist.cluster.scratch import Scratch
from minidist.cluster.starts import Starts
from minidist.cluster.supervision import Recipe, Restarts, Supervised
from minidist.concurrency import SharedThread, together
from minidist.config.cluster import ClusterConfig, Role
from minidist.run.timeline import Calls
from minidist.types import RankGroup

T = TypeVar("T")


class Cluster:
    """Hosts the roles of one run; `async with` ends every process and removes every socket and temporary file it started.

    `roles` are those the run needs: room for all their actors is set aside at once, or the run does not start. `at_once`
    (`StageSection.roles_at_once`) says which of them share the cores.
    """

    def __init__(
        self,
        config: ClusterConfig,
        logs: Path,
        roles: Sequence[Role] = ("rollout", "teacher", "learner"),
        *,
        at_once: Mapping[str, int] | None = None,
    ) -> None:
        self._logs = logs
        self._config = config
        self.restarts = Restarts(config.supervision.restarts)
        """The actors that were started again."""
        self.supervised: list[Supervised] = []
        """The roles of which lost actors are started again."""
        self._heartbeats: asyncio.Task[None] | None = None
        self.actors = None
        if config.roles == "ray":
            from minidist.cluster.actors import Actors

            self.actors = Actors(config, roles, at_once)
        self._local: list[Local] = []
        self._residency = Residency() if config.takes_turns_on_devices else None
        self._loading = asyncio.Lock()
        self._turns = SharedThread() if config.roles == "local" and not at_once else None
        """The thread of roles in this process, where none works beside another."""
        self._starts = Starts()
        at_a_time = cores() if config.address is None else config.processes
        self._starting = asyncio.Semaphore(1 if config.shares_devices else at_a_time)
        """A role that starts keeps a core busy with imports: more than there are cores would delay the slowest, an engine.
        Those that share devices start alone: vLLM measures what memory is free."""

    async def __aenter__(self) -> "Cluster":
        self._scratch = Scratch()
        if self.actors is not None:
            starting = asyncio.ensure_future(asyncio.to_thread(self.actors.start, self._scratch.path, self._logs.parent))
            try:
                with self._starts.of("Ray"):
                    await asyncio.shield(starting)
                # Ray's native code replaces our SIGTERM handler by one that prints a trace and may abort.
                signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
                if self._config.supervision.enabled:
                    self._heartbeats = asyncio.create_task(self.actors.heartbeats().run())
            except BaseException:
                await asyncio.wait([starting])  # a thread cannot be cancelled: it must have started all that is to be ended
                self._end(failed=True)
                raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for supervised in self.supervised:
            await supervised.end()
        if self._heartbeats is not None:
            self._heartbeats.cancel()
            await asyncio.gather(self._heartbeats, return_exceptions=True)
        for role in self._local:
            await role.close()
        if self._turns is not None:
            self._turns.close()
        self._end(failed=kind is not None and kind is not asyncio.CancelledError)

    def _end(self, *, failed: bool) -> None:
        if self.actors is not None:
            self.actors.end()
            if failed:
                self.actors.keep_logs(self._logs)
        self._scratch.remove()

    async def host(self, role: Role, make: Callable[..., T], **arguments: Any) -> T:
        """The object that `make(**arguments)` builds, in an actor or in this process. Its verbs are awaited either way."""
        with self._starts.of(role):
            if self.actors is None:
                local = Local(role)
                made = self._resident(local, role)
                async with self._loading:  # one after another: loading a model changes torch for every thread
                    with nullcontext() if self._turns is None else self._turns.for_workers():
                        await made.start(make, **arguments)
                self._local.append(local)
                return cast(T, made)
            remote = self._resident(self.actors.seat(role), role)
            self._scratch.guard()
            async with self._starting:
                await remote.start(make, **arguments)
            return cast(T, remote)

    async def host_group(self, role: Role, make: Callable[..., T], count: int, **arguments: Any) -> list[T]:
        """`count` ranks that work on one thing together: `make` also gets the `group` that each of them joins."""
        if count == 1 or self.actors is None:
            return [await self.host(role, make, **arguments)]
        with self._starts.of(role):
            seated = [self._resident(self.actors.seat(role), role) for _ in range(count)]
            self._scratch.guard()
            async with self._starting:
                await _start(seated, await self.actors.meeting(seated), make, arguments)
        return seated

    def supervise(
        self,
        actors: Sequence[Any],
        make: Callable[..., Any],
        arguments: dict[str, Any],
        assemble: Callable[[list[Any]], Any] = operator.itemgetter(0),
    ) -> Any:
        """The role that hosted actors are together, which `make` made of these arguments: they are started again where they are
        lost. `assemble`: the role of several."""
        if self.actors is None or not self._config.supervision.enabled:
            return assemble(list(actors))
        role = Supervised(actors, Recipe(make, arguments, self.replace, assemble), self.restarts)
        self.supervised.append(role)
        return role

    async def replace(self, members: Sequence[Any], make: Callable[..., T], **arguments: Any) -> list[T]:
        """A role, or the ranks of one, made anew in other processes in the place of these, of which some are lost. Raises
        NoRoomError where the cluster has no room for one."""
        assert self.actors is not None
        seated = await together(self.actors.reseat(_bare(member)) for member in members)
        new: list[Any] = [self._resident(remote, self.actors.role_of(remote)) for remote in seated]
        self._scratch.guard()
        async with self._starting:
            await _start(new, await self.actors.meeting(new), make, arguments)
        return new

    async def restart(self, members: Sequence[T], make: Callable[..., T], **arguments: Any) -> list[T]:
        """The object that `make` builds in place of a role, or of the ranks of one, in the same processes, which stay warm."""
        if self.actors is None:
            await together(self.dismiss(member) for member in members)
            return [await self.host("learner", make, **arguments)]
        remotes: list[Any] = list(members)
        await _start(remotes, "", make, arguments)  # the ranks have met: their process group lives as long as they do
        return remotes

    def calls(self) -> dict[str, Calls]:
        """When each role worked since this was last asked, by its name, such as `teacher` or `rollout 1`."""
        roles = self._local if self.actors is None else self.actors.seated
        return {role.name: role.calls() for role in roles}

    def first(self, role: Role) -> Any:
        """The first actor of a role, which answers `ask(question, **arguments)`; None where the role has none."""
        roles = self._local if self.actors is None else self.actors.seated
        return next((each for each in roles if each.name.split(" ")[0] == role), None)

    def _resident(self, role: Any, kind: Role) -> Any:
        """The role, which holds the shared devices only while it computes, where that is asked for."""
        return role if self._residency is None else ResidentRole(role, kind, self._residency)

    async def dismiss(self, role: Any) -> None:
        """End one role before the others."""
        for supervised in [each for each in self.supervised if role.name in [actor.name for actor in each.actors]]:
            self.supervised.remove(supervised)
            await supervised.end()
        if isinstance(role, Supervised):
            assert self.actors is not None
            names = [actor.name for actor in role.actors]  # of which one may have been replaced a moment ago
            for actor in [seated for seated in self.actors.seated if seated.name in names]:
                await self.dismiss(actor)
            return
        role = role.role if isinstance(role, ResidentRole) else role
        if self._residency is not None:
            self._residency.leave(role)
        if self.actors is not None:
            self.actors.dismiss(role)
        if any(role is each for each in self._local):
            self._local.remove(role)
            await role.close()


def _bare(role: Any) -> Any:
    """A role that ends, as it is."""
    return role.leave() if isinstance(role, ResidentRole) else role


async def _start(remotes: Sequence[Any], meeting: str, make: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Make a role in its process, or one rank of it in each, which meet there."""
    if len(remotes) == 1:
        await remotes[0].start(make, **arguments)
        return
    groups = [RankGroup(rank, len(remotes), meeting) for rank in range(len(remotes))]
    await together(remote.start(make, group=group, **arguments) for remote, group in zip(remotes, groups, strict=True))
