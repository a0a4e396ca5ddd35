"""Where the roles live: in Ray actors, or in this process. Every process that a run starts ends with it."""

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

from minidist.cluster.local import Local
from minidist.cluster.machine import cores
from minidist.cluster.residency import Residency, ResidentRole
from minidist.cluster.scratch import Scratch
from minidist.cluster.starts import Starts
from minidist.concurrency import SharedThread, together
from minidist.config.cluster import ClusterConfig, Role
from minidist.errors import ActorLostError, ClusterLostError, RoleError
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
            except BaseException:
                await asyncio.wait([starting])  # a thread cannot be cancelled: it must have started all that is to be ended
                self._end(failed=True)
                raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
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
            self._scratch.guard()  # the role may have started processes
            return cast(T, remote)

    async def host_group(self, role: Role, make: Callable[..., T], count: int, **arguments: Any) -> list[T]:
        """`count` ranks that work on one thing together: `make` also gets the `group` that each of them joins."""
        if count == 1 or self.actors is None:
            return [await self.host(role, make, **arguments)]
        with self._starts.of(role):
            seated = [self._resident(self.actors.seat(role), role) for _ in range(count)]
            self._scratch.guard()
            async with self._starting:
                await _start_ranks(seated, await self.actors.meeting(seated), make, arguments)
        return seated

    async def restart(self, members: Sequence[T], make: Callable[..., T], **arguments: Any) -> list[T]:
        """The object that `make` builds in place of a role, or of the ranks of one, in the same processes, which stay warm."""
        if self.actors is None:
            await together(self.dismiss(member) for member in members)
            return [await self.host("learner", make, **arguments)]
        remotes: list[Any] = list(members)
        if len(remotes) == 1:
            await remotes[0].start(make, **arguments)
        else:  # the ranks have met: their process group lives as long as they do
            await _start_ranks(remotes, "", make, arguments)
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

    def required(self) -> AbstractAsyncContextManager[None]:
        """What runs inside needs the cluster: where that dies or hangs, it is cancelled and ClusterLostError is raised."""
        return nullcontext() if self.actors is None else self.actors.health.required()

    async def has_lost(self, role: Role, error: RoleError) -> bool:
        """Whether an actor of a role is lost, now that a call has failed with `error`: one death makes calls of others fail."""
        if isinstance(error, ActorLostError) and error.actor.split(" ")[0] == role:
            return True
        return self.actors is not None and bool(await self.actors.lost(role))

    async def dismiss_all_but(self, kept: Sequence[Any]) -> None:
        """End all roles but these."""
        stay = {id(role.role if isinstance(role, ResidentRole) else role) for role in kept}
        for role in [*self._local, *(self.actors.seated if self.actors else [])]:
            if id(role) not in stay:
                await self.dismiss(role)

    async def dismiss(self, role: Any) -> None:
        """End one role before the others."""
        if isinstance(role, ResidentRole):
            role = role.leave()
        elif self._residency is not None:
            self._residency.leave(role)
        if self.actors is not None:
            self.actors.dismiss(role)
        if any(role is each for each in self._local):
            self._local.remove(role)
            await role.close()


async def _start_ranks(remotes: Sequence[Any], meeting: str, make: Callable[..., Any], arguments: dict[str, Any]) -> None:
    groups = [RankGroup(rank, len(remotes), meeting) for rank in range(len(remotes))]
    await together(remote.start(make, group=group, **arguments) for remote, group in zip(remotes, groups, strict=True))
