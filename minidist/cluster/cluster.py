"""Where the roles live: in Ray actors, or in this process. Every process that a run starts ends with it."""

import asyncio
import operator
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

from minidist.cluster.hosted import Hosted
from minidist.cluster.local import Local
from minidist.cluster.machine import cores
from minidist.cluster.residency import ResidentRole
from minidist.cluster.scratch import Scratch
from minidist.cluster.starts import Starts
from minidist.cluster.supervision import Recipe, Supervised
from minidist.concurrency import SharedThread, together
from minidist.config.cluster import ClusterConfig, Role
from minidist.errors import ClusterLostError
from minidist.types import RankGroup

T = TypeVar("T")


class Cluster(Hosted):
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
        super().__init__(config)
        self._logs = logs
        self._heartbeats: asyncio.Task[None] | None = None
        if config.roles == "ray":
            from minidist.cluster.actors import Actors

            self.actors = Actors(config, roles, at_once)
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
        self._end(failed=kind is not None and kind is not asyncio.CancelledError, lost=kind is ClusterLostError)

    def _end(self, *, failed: bool, lost: bool = False) -> None:
        if lost:
            self._scratch.kill()
        if self.actors is not None:
            self.actors.end(lost=lost)
        if failed:
            self.keep_logs()
        self._scratch.remove()

    def keep_logs(self) -> None:
        """Copy what the actors have printed to the run's logs/."""
        if self.actors is not None:
            self.actors.keep_logs(self._logs)

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
            remote = self._resident(await self._seat(role), role)
            self._scratch.guard()
            async with self._starting:
                await remote.start(make, **arguments)
            self._scratch.guard()  # the role may have started processes
            return cast(T, remote)

    async def host_group(self, role: Role, make: Callable[..., T], count: int, **arguments: Any) -> list[T]:
        """`count` ranks that work on one thing together: `make` also gets the `group` that each of them joins."""
        if count == 1 or self.actors is None:
            return [await self.host(role, make, **arguments)]
        with self._starts.of(role):
            seated = [self._resident(actor, role) for actor in await together(self._seat(role) for _ in range(count))]
            self._scratch.guard()
            async with self._starting:
                await _start(seated, await self.actors.meeting(seated), make, arguments)
        return seated

    def required(self) -> AbstractAsyncContextManager[None]:
        """What runs inside needs the cluster: where that dies or hangs, it is cancelled and ClusterLostError is raised."""
        return nullcontext() if self.actors is None else self.actors.health.required()

    async def _seat(self, role: Role) -> Any:
        """An empty actor. Raises NoRoomError where a joined cluster has lost the node that was set aside for it."""
        assert self.actors is not None
        actor = self.actors.seat(role)
        if self._config.address is not None:
            from minidist.cluster.actors import placed

            await placed(actor, self._config.start_timeout_s)
        return actor

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
