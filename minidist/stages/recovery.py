"""A run that outlives its learner and its Ray cluster: what was lost starts again, and the run goes on from its last checkpoint
as if it had been stopped and started again."""

from collections import Counter
from typing import Any, Literal

from minidist.cluster.cluster import Cluster
from minidist.cluster.supervision import NoRoomError
from minidist.errors import ClusterLostError, RoleError
from minidist.roles.host import Roles
from minidist.roles.warm import WarmRoles
from minidist.run.checkpoint import Checkpoint
from minidist.run.directory import RunDirectory
from minidist.run.tracking import log
from minidist.stages import Stage, StageRun, code, roles_of

Lost = Literal["learner", "Ray"]


class Recovery:
    """Runs a stage to its end in a cluster, from a checkpoint or from its first step.

    A rank of the learner that dies or hangs ends all ranks: they start again, in new processes, and read the last checkpoint.
    Engines and teachers of a stage that publishes weights before its first step stay. A cluster of this run alone that dies is
    started again with all roles; one that the run has joined is not this run's to start. Each happens at most
    `cluster.supervision.restarts` times between two checkpoints.
    """

    def __init__(self, stage: Stage, config: Any, plan: Any, directory: RunDirectory, checkpoint: Checkpoint | None) -> None:
        self._stage = stage
        self._config = config
        self._plan = plan
        self._directory = directory
        self._checkpoint = checkpoint
        self._restarts = Counter[str]()
        """How often the learner and Ray, and actors of earlier clusters, were started again."""
        self._since_checkpoint = Counter[Lost]()

    async def run(self) -> dict[str, Any]:
        """The summary of the run. Raises RoleError where what was lost is not started again."""
        config, stage = self._config, self._stage
        while True:
            logs, roles = self._directory.path / "logs", roles_of(config)
            cluster = Cluster(config.cluster, logs, roles, at_once=config.roles_at_once)
            try:
                async with cluster:
                    hosting = Roles(cluster, config, self._plan)
                    return await self._run_in(WarmRoles(hosting) if stage.publishes else hosting)
            except ClusterLostError as error:
                self._restarts.update(_supervision(cluster).get("restarts", {}))
                self._rewind("Ray", error)

    async def _run_in(self, roles: Roles) -> dict[str, Any]:
        """The same, in the roles of one cluster. Raises ClusterLostError where that is lost."""
        while True:
            run = StageRun(self._config, self._plan, self._directory, self._checkpoint)
            try:
                async with roles.cluster.required():
                    summary = await code(self._stage.run)(run, roles)
                return summary | self._summary(roles.cluster)
            except (ClusterLostError, NoRoomError):
                raise
            except RoleError as error:
                if not await roles.cluster.has_lost("learner", error):
                    raise
                roles.cluster.keep_logs()
                self._rewind("learner", error)
                await roles.drop_learner()

    def _summary(self, cluster: Cluster) -> dict[str, Any]:
        """For the run's summary: what was started again, and which actors were given up; empty without any."""
        facts = _supervision(cluster)
        restarts = self._restarts + Counter(facts.get("restarts", {}))
        return {"supervision": facts | {"restarts": dict(restarts)}} if facts or restarts else {}

    def _rewind(self, lost: Lost, error: RoleError) -> None:
        """Go back to the last checkpoint. Raises the error where the run is not to go on, or has lost the same too often."""
        settings = self._config.cluster.supervision
        if lost == "Ray" and not (settings.enabled and self._config.cluster.address is None):
            start = "start that cluster again, and " if self._config.cluster.address else ""
            raise ClusterLostError(
                f"{error}; {start}give the same command again: it goes on from the last checkpoint"
            ) from error
        if not settings.enabled:
            raise error
        before, self._checkpoint = self._checkpoint, self._directory.rewind()
        if self._checkpoint is not None and (before is None or self._checkpoint.step > before.step):
            self._since_checkpoint.clear()
        if self._since_checkpoint[lost] >= settings.restarts:
            found = f"{error}; {lost} was started again {settings.restarts} times without a checkpoint in between"
            remedy = "see the run's logs/ for the cause; the same command resumes from the last checkpoint"
            raise type(error)(f"{found} (cluster.supervision.restarts): {remedy}") from error
        self._since_checkpoint[lost] += 1
        self._restarts[lost] += 1
        where = "its first step" if self._checkpoint is None else f"its checkpoint after {self._checkpoint.step} steps"
        log.warning(
            "%s; %s starts again, and the run goes on from %s", error, "the learner" if lost == "learner" else lost, where
        )


def _supervision(cluster: Cluster) -> dict[str, Any]:
    return cluster.restarts.summary().get("supervision", {})
