"""`cluster`: where the actors of each role run, how many there are, and their CPUs and GPUs."""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PrivateAttr, model_validator

from minidist.config.base import Section

Role = Literal["rollout", "teacher", "learner"]
Placement = Literal["pack", "spread", "strict_pack", "strict_spread"]


class RoleConfig(Section):
    """Resources of each actor of a role."""

    cpus: float | None = Field(default=None, gt=0)
    """CPUs that Ray reserves for an actor, whole or a fraction of one. None: an equal part of the machine's cores, or 1 on a
    joined cluster."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of an actor: whole devices, or a fraction below 1 of one. None: an equal part of cluster.gpus."""

    @property
    def processes(self) -> int:
        """Processes of the role: actors x shards, or ranks."""
        return math.prod(getattr(self, field, 1) for field in ("actors", "shards", "ranks"))

    @property
    def devices(self) -> int:
        """Whole devices that one actor needs, if it has GPUs."""
        return getattr(self, "tensor_parallel", 1)

    @property
    def group(self) -> int:
        """Processes that hold parts of one model, or of one gradient: NCCL refuses two of them on one device."""
        return math.prod(getattr(self, field, 1) for field in ("shards", "ranks"))


class RolloutRoleConfig(RoleConfig):
    """Rollout engines."""

    actors: int = Field(default=1, ge=1)
    """Engines that write in parallel; prompt i of a step always goes to engine i modulo their number."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Devices (processes, on a CPU) over which vLLM splits each engine's model."""


class TeacherRoleConfig(RoleConfig):
    """Frozen teachers."""

    actors: int = Field(default=1, ge=1)
    """Teachers that score in parallel."""
    tensor_parallel: int = Field(default=1, ge=1)
    """teacher.backend vllm: devices (processes, on a CPU) over which vLLM splits each teacher."""
    shards: int = Field(default=1, ge=1)
    """teacher.backend hf: processes, each on its own device, over which ZeRO-3 partitions the parameters of each teacher. Each
    process reads its own part of the files alone."""


class LearnerRoleConfig(RoleConfig):
    """The learner's ranks."""

    ranks: int = Field(default=1, ge=1)
    """Data-parallel processes of the learner, each on its own device; learner.zero_stage sets what they partition."""


class ClusterConfig(Section):
    """Where the actors of each role run, how many there are, and their CPUs and GPUs."""

    roles: Literal["ray", "local"] = "ray"
    """ray: Ray actors. local: plain objects in this process, for debugging and small supervised runs."""
    address: str | None = None
    """Address of a running Ray cluster to join; `auto` finds a local one. None: start a cluster on this machine for the run."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of this run; 0 runs everything on CPUs. Each actor gets whole devices if there are enough for all actors of the run,
    else an equal fraction of one: actors are then dealt to the devices in turn, engines first, then teachers, then learners."""
    gpu_gib: float | None = Field(default=None, gt=0)
    """Memory of one GPU, GiB, to plan a run for GPUs that this machine does not have. None: memory of this machine's GPUs."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of an actor while it works. None: cores / actors of the role, since actors of one role work at the same time
    and roles take turns; divided by the roles that work at the same time where loop makes them overlap."""
    object_store_gib: float = Field(default=0.5, gt=0)
    """Shared memory of Ray's object store, which carries rollouts, scores and weights, GiB."""
    placement: Placement = "pack"
    """How Ray places the actors on nodes: on few nodes (pack), on many nodes (spread), or strictly so, or else not at all
    (strict_pack, strict_spread)."""
    start_timeout_s: float = Field(default=300, gt=0)
    """Longest wait until the cluster has resources for all actors, seconds."""
    rollout: RolloutRoleConfig = RolloutRoleConfig()
    teacher: TeacherRoleConfig = TeacherRoleConfig()
    learner: LearnerRoleConfig = LearnerRoleConfig()
    _hosted: tuple[Role, ...] = PrivateAttr(default=("rollout", "teacher", "learner"))

    @model_validator(mode="after")
    def _roles_fit(self) -> "ClusterConfig":
        if self.roles == "local" and self.processes > 3:
            raise ValueError("cluster.roles local has one actor of each role; set cluster.roles=ray for more")
        for name, role in self._by_name.items():
            if role.gpus is None:
                continue
            if role.gpus > 1 and role.gpus != int(role.gpus):
                raise ValueError(f"cluster.{name}.gpus is {role.gpus}: set a fraction below 1, or whole devices")
            if role.devices > 1 and 0 < role.gpus < role.devices:
                raise ValueError(f"cluster.{name}.gpus is {role.gpus}, and each actor needs {role.devices} whole devices")
            if role.group > 1 and 0 < role.gpus < 1:
                text = f"cluster.{name}.gpus is {role.gpus}, and its {role.group} processes may not share a device"
                raise ValueError(f"{text}; set cluster.{name}.gpus=1, or leave it out")
        return self

    def host(self, roles: Sequence[Role]) -> None:
        """Share the GPUs among these roles, those of the run. Raises ValueError where there are too few for them."""
        self._hosted = tuple(roles)
        if not self.gpus:
            return
        left, dealt = self.gpus - self._claimed, ", ".join(name for name in roles if self.role(name).gpus is None)
        if left < 0 or (dealt and not left):
            raise ValueError(
                f"cluster.gpus is {self.gpus}, and roles with gpus of their own claim {self._claimed:g}, which leaves none for "
                f"the others ({dealt or 'there are none'}); raise cluster.gpus, or lower what they claim"
            )
        for name in self._hosted if self.shares_devices else ():
            role = self.role(name)
            if role.gpus is None and role.devices > 1:
                raise ValueError(
                    f"cluster.gpus is {self.gpus}, too few for whole devices, and each actor of cluster.{name} needs "
                    f"{role.devices}; raise cluster.gpus, or set cluster.{name}.gpus={role.devices} and gpus of other roles"
                )
            if role.gpus is None and role.group > max(1, self.shared_devices):
                raise ValueError(
                    f"cluster.gpus is {self.gpus}, and {role.group} processes of cluster.{name} may not share a device; raise "
                    f"cluster.gpus to {role.group + math.ceil(self._claimed)}, or lower their number"
                )

    @property
    def processes(self) -> int:
        """Processes of all roles; each shard of a teacher counts."""
        return sum(role.processes for role in self._by_name.values())

    @property
    def _by_name(self) -> dict[Role, RoleConfig]:
        return {"rollout": self.rollout, "teacher": self.teacher, "learner": self.learner}

    def role(self, name: Role) -> RoleConfig:
        """The section of a role."""
        return self._by_name[name]

    def gpus_of(self, role: RoleConfig) -> float:
        """GPUs of an actor of `role`."""
        if role.gpus is not None or self.gpus == 0:
            return role.gpus or 0.0
        if not self.shares_devices:
            return float(role.devices)
        processes = sum(each.processes for each in self._dealt)
        # Rounded down, so that the fractions of one device add up to at most 1.
        if not self.shared_devices:
            return math.floor(100 * (self.gpus - self._claimed) / processes) / 100
        return math.floor(100 / math.ceil(processes / self.shared_devices)) / 100

    @property
    def shares_devices(self) -> bool:
        """Whether actors get fractions of devices, since there are more of them than devices."""
        return bool(self.gpus) and sum(each.processes * each.devices for each in self._dealt) > self.gpus - self._claimed

    @property
    def shared_devices(self) -> int:
        """Whole devices that actors share. 0: none do, or those that do share what is left of one."""
        return math.floor(self.gpus - self._claimed) if self.shares_devices else 0

    @property
    def _dealt(self) -> list[RoleConfig]:
        """The roles of the run without `gpus` of their own."""
        return [self.role(name) for name in self._hosted if self.role(name).gpus is None]

    @property
    def _claimed(self) -> float:
        """GPUs of the roles with `gpus` of their own."""
        return sum(self.role(name).processes * (self.role(name).gpus or 0.0) for name in self._hosted)
