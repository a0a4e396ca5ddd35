"""The roles of a run that are hosted, in Ray actors or in this process: which there are, which are lost, and their end."""

import asyncio
from typing import TYPE_CHECKING, Any

from minidist.cluster.local import Local
from minidist.cluster.residency import Residency, ResidentRole
from minidist.cluster.supervision import Restarts, Supervised
from minidist.config.cluster import ClusterConfig, Role
from minidist.errors import ActorLostError, RoleError
from minidist.run.timeline import Calls

if TYPE_CHECKING:
    from minidist.cluster.actors import Actors


class Hosted:
    """The roles that a `Cluster` has hosted and not dismissed."""

    def __init__(self, config: ClusterConfig) -> None:
        self.actors: Actors | None = None
        self.restarts = Restarts(config.supervision.restarts)
        """The actors that were started again."""
        self._config = config
        self.supervised: list[Supervised] = []
        """The roles of which lost actors are started again."""
        self._local: list[Local] = []
        self._residency = Residency() if config.takes_turns_on_devices else None

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

    async def has_lost(self, role: Role, error: RoleError) -> bool:
        """Whether an actor of a role is lost, now that a call has failed with `error`: one death makes calls of others fail."""
        if isinstance(error, ActorLostError) and error.actor.split(" ")[0] == role:
            return True
        seated = [actor for actor in (self.actors.seated if self.actors else ()) if _role(actor) == role]
        waits = [asyncio.wait_for(actor.beat(), self._config.supervision.heartbeat_timeout_s) for actor in seated]
        answers = await asyncio.gather(*waits, return_exceptions=True)
        return any(isinstance(answer, ActorLostError | TimeoutError) for answer in answers)

    async def dismiss_all(self, *roles: Role) -> None:
        """End all actors of these roles, those that hang too."""
        for supervised in [each for each in self.supervised if _role(each) in roles]:
            await self.dismiss(supervised)
        for role in [each for each in self._local if _role(each) in roles]:
            await self.dismiss(role)
        if self.actors is not None:
            from minidist.cluster.killing import kill

            for actor in [each for each in self.actors.seated if _role(each) in roles]:
                await kill(actor)
                await self.dismiss(actor)

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


def _role(actor: Any) -> str:
    """The role of an actor, by its name."""
    return actor.name.split(" ")[0]
