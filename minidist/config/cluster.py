"""`cluster`: where the roles live, how many there are of each, and what each is given."""

import math
from typing import Literal

from pydantic import Field, model_validator

from minidist.config.base import Section

Role = Literal["rollout", "teacher", "learner"]
Placement = Literal["pack", "spread", "strict_pack", "strict_spread"]


class RoleConfig(Section):
    """What each actor of a role is given."""

    cpus: float | None = Field(default=None, gt=0)
    """CPUs that Ray sets aside for an actor, whole or a share of one. None: an equal part of the machine's cores, or 1 on a
    cluster that was joined."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of an actor: whole devices, or a share below 1 of one. None: its part of cluster.gpus."""

    @property
    def processes(self) -> int:
        """Actors of this role in all."""
        return 1

    @property
    def devices(self) -> int:
        """Whole devices one actor computes on, when it has GPUs at all."""
        return 1


class RolloutRoleConfig(RoleConfig):
    """Rollout engines."""

    actors: int = Field(default=1, ge=1)
    """Engines that write side by side; prompt i of a step is always written by engine i modulo their number."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Devices (processes, on a CPU) over which vLLM splits each engine's model."""

    @property
    def processes(self) -> int:
        return self.actors

    @property
    def devices(self) -> int:
        return self.tensor_parallel


class TeacherRoleConfig(RoleConfig):
    """Frozen teachers."""

    actors: int = Field(default=1, ge=1)
    """Teachers that score side by side."""
    tensor_parallel: int = Field(default=1, ge=1)
    """teacher.backend vllm: devices (processes, on a CPU) over which vLLM splits each teacher that is larger than one."""
    shards: int = Field(default=1, ge=1)
    """teacher.backend hf: processes, each on a device of its own, over which ZeRO-3 partitions each teacher's parameters."""

    @property
    def processes(self) -> int:
        return self.actors * self.shards

    @property
    def devices(self) -> int:
        return self.tensor_parallel


class LearnerRoleConfig(RoleConfig):
    """The learner's ranks."""

    ranks: int = Field(default=1, ge=1)
    """Processes that share the learner's work, each on a device of its own; learner.zero_stage says what they partition."""

    @property
    def processes(self) -> int:
        return self.ranks


class ClusterConfig(Section):
    """Where the roles live, how many there are of each, and what each is given."""

    roles: Literal["ray", "local"] = "ray"
    """Ray actors, or plain objects in this process (for debugging, and for small supervised runs)."""
    address: str | None = None
    """A running Ray cluster to join (`auto` finds it); None starts one on this machine and ends it with the run."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of this run; 0 runs everything on the CPU. Each actor gets whole devices where there are enough for all, else an
    equal share of one."""
    gpu_gib: float | None = Field(default=None, gt=0)
    """Memory of one GPU, GiB, for the plan of a run on GPUs that this machine does not have. None: what is there."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of an actor while it works. None: the cores divided by the actors of its role, since roles take turns at
    staleness 0 and the actors of one role do not."""
    object_store_gib: float = Field(default=0.5, gt=0)
    """Shared memory through which rollouts, scores and weights travel, GiB."""
    placement: Placement = "pack"
    """How Ray lays the actors out over nodes: together as far as they fit (pack), apart as far as they can be (spread), or
    one of the two without exception (strict_)."""
    start_timeout_s: float = Field(default=300, gt=0)
    """Seconds to wait until the cluster has room for all actors."""
    rollout: RolloutRoleConfig = RolloutRoleConfig()
    teacher: TeacherRoleConfig = TeacherRoleConfig()
    learner: LearnerRoleConfig = LearnerRoleConfig()

    @model_validator(mode="after")
    def _roles_fit(self) -> "ClusterConfig":
        if self.roles == "local" and self.processes > 3:
            raise ValueError("cluster.roles local has one actor of each role; set cluster.roles=ray for more")
        for name, role in (("rollout", self.rollout), ("teacher", self.teacher), ("learner", self.learner)):
            if role.gpus is not None and role.gpus > 1 and role.gpus != int(role.gpus):
                raise ValueError(f"cluster.{name}.gpus is {role.gpus}: a share below 1, or whole devices")
            if role.devices > 1 and role.gpus is not None and 0 < role.gpus < role.devices:
                raise ValueError(f"cluster.{name}.gpus is {role.gpus}, and each actor needs {role.devices} whole devices")
            if self.gpus and role.gpus is None and role.devices > 1 and self.gpus_of(role) < role.devices:
                raise ValueError(
                    f"cluster.gpus is {self.gpus}, too few for whole devices, of which each actor of cluster.{name} needs "
                    f"{role.devices}; raise cluster.gpus, or set cluster.{name}.gpus={role.devices} and the others' shares"
                )
        return self

    @property
    def processes(self) -> int:
        """Actors of all roles; a teacher of several hf shards counts each."""
        return self.rollout.processes + self.teacher.processes + self.learner.processes

    def role(self, name: Role) -> RoleConfig:
        """The section of a role."""
        return getattr(self, name)

    def gpus_of(self, role: RoleConfig) -> float:
        """GPUs that an actor of `role` gets."""
        if role.gpus is not None or self.gpus == 0:
            return role.gpus or 0.0
        roles: tuple[RoleConfig, ...] = (self.rollout, self.teacher, self.learner)
        if sum(each.processes * each.devices for each in roles) <= self.gpus:
            return float(role.devices)
        # Rounded down, so that the shares of one device never add up to more than it.
        return math.floor(100 / math.ceil(self.processes / self.gpus)) / 100
