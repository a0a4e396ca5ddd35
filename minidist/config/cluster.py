"""`cluster`: where the actors of each role run, how many there are, and their CPUs and GPUs."""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PrivateAttr, model_validator

from minidist.config.base import Section
from minidist.config.supervision import SupervisionConfig

Role = Literal["rollout", "teacher", "learner"]
Placement = Literal["pack", "spread", "strict_pack", "strict_spread"]
_MOST_PROCESSES = 100_000
WeightTransfer = Literal["object_store", "gloo", "nccl", "ipc"]


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
        """Whole devices that one actor needs, if it has GPUs; processes of its model, on a CPU."""
        return math.prod(getattr(self, field, 1) for field in ("tensor_parallel", "pipeline_parallel"))

    @property
    def spans_nodes(self) -> bool:
        """Whether the devices of one actor may be on several nodes."""
        return getattr(self, "across_nodes", False)

    @property
    def group(self) -> int:
        """Processes that hold parts of one model, or of one gradient: NCCL refuses two of them on one device."""
        return math.prod(getattr(self, field, 1) for field in ("shards", "ranks"))


class EngineRoleConfig(RoleConfig):
    """Resources of actors whose models vLLM splits over tensor_parallel x pipeline_parallel devices."""

    tensor_parallel: int = Field(default=1, ge=1)
    """Devices (processes, on a CPU) over which vLLM splits every layer of a model. They talk in every layer: keep them on one
    node."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """Groups of tensor_parallel devices (processes, on a CPU) over which vLLM deals the layers of a model. Only neighbours
    talk, so this is how a model is divided that one node cannot hold."""
    across_nodes: bool = False
    """Whether the devices of one model may be on several nodes of the cluster at cluster.address: Ray places each by itself,
    and vLLM starts a process of its own on it. False: one node holds them all."""


class RolloutRoleConfig(EngineRoleConfig):
    """Rollout engines."""

    actors: int = Field(default=1, ge=1)
    """Engines that write in parallel. Prompt i of a step goes to engine i modulo their number; where a step has more sequences
    than vLLM engines write at one time, and not under run.deterministic, they take prompts from one queue."""


class TeacherRoleConfig(EngineRoleConfig):
    """Frozen teachers; of several `teachers` each has actors like these. tensor_parallel and pipeline_parallel divide those of
    backend vllm, shards those of backend hf."""

    actors: int = Field(default=1, ge=1)
    """Teachers that score in parallel."""
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
    residency: bool = False
    """Where roles share GPUs: hold them in turn. One kind of role (engines, teachers, learner) has its weights on the devices
    at a time, and may fill them; the others keep theirs in host memory. Each change moves weights both ways, once a phase of a
    step. false: all hold their memory side by side. Without GPUs roles change all the same, and no memory moves."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of an actor while it works. None: cores / actors of the role, since actors of one role work at the same time
    and roles take turns; divided by the roles that work at the same time where loop makes them overlap."""
    object_store_gib: float = Field(default=0.5, gt=0)
    """Shared memory of Ray's object store, which carries rollouts, scores and weights, GiB."""
    placement: Placement = "pack"
    """How Ray places the actors on nodes: on few nodes (pack), on many nodes (spread), or strictly so, or else not at all
    (strict_pack, strict_spread)."""
    prometheus: int | None = Field(default=None, ge=0, le=65535)
    """sft, distill, teach, compare: show the last value of each metric to Prometheus, through Ray's metrics agent, as gauges
    such as ray_minidist_loss_nats_per_token, tagged with run.directory. The number is the port on loopback where the cluster
    is this run's own, 0 for any that is free; a joined cluster has its own on each node, and the log names the one in use.
    None: no gauges."""
    weight_transfer: WeightTransfer | None = None
    """distill, compare: how new weights go from the learner to vLLM engines. object_store: through Ray's object store, with a
    copy in the memory of each node and process. gloo: from the learner's first rank to all processes of the engines, from CPU
    memory to CPU memory, one decoder layer at a time. nccl: likewise from GPU to GPU, where every engine and the learner have
    GPUs of their own. ipc: the engines read the learner's memory on the GPU that they share with it. None: nccl or ipc,
    whichever the GPUs allow; object_store elsewhere, and for adapters, which are published alone."""
    weight_transfer_timeout_s: float = Field(default=600, gt=0)
    """Longest publication of weights, seconds. One that takes longer is given up and made again; after three the run stops."""
    start_timeout_s: float = Field(default=300, gt=0)
    """Longest wait until the cluster has resources for all actors, seconds, and for one that is started again. Where the
    cluster has lost a node and no other has room, the run goes on with fewer rollout or teacher actors."""
    rollout: RolloutRoleConfig = RolloutRoleConfig()
    teacher: TeacherRoleConfig = TeacherRoleConfig()
    learner: LearnerRoleConfig = LearnerRoleConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    _hosted: tuple[Role, ...] = PrivateAttr(default=("rollout", "teacher", "learner"))
    _teachers: int = PrivateAttr(default=1)

    @model_validator(mode="after")
    def _roles_fit(self) -> "ClusterConfig":
        if (most := sum(role.processes * role.devices for role in self._by_name.values())) > _MOST_PROCESSES:
            raise ValueError(
                f"cluster has {most:,} processes in all, more than the {_MOST_PROCESSES:,} of any cluster; lower counts"
            )
        if self.roles == "local" and self.processes > 3:
            raise ValueError("cluster.roles local has one actor of each role; set cluster.roles=ray for more")
        if self.roles == "local" and self.prometheus is not None:
            raise ValueError("cluster.prometheus shows metrics through Ray; set cluster.roles=ray, or leave it out")
        if self.roles == "local" and self.weight_transfer not in (None, "object_store"):
            alone = f"cluster.weight_transfer {self.weight_transfer} needs processes that receive at the same time, and"
            raise ValueError(
                f"{alone} cluster.roles local has one; set cluster.roles=ray, or leave cluster.weight_transfer out"
            )
        for name, role in self._by_name.items():
            if role.spans_nodes:
                _check_spans(self, name, role)
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

    def host(self, roles: Sequence[Role], teachers: int = 1) -> None:
        """Share the GPUs among these roles, those of the run, which has so many different `teachers`. Raises ValueError where
        there are too few for them."""
        self._hosted, self._teachers = tuple(roles), teachers
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
        return sum(map(self.processes_of, self._by_name))

    def processes_of(self, name: Role) -> int:
        """Processes of a role; each of several teachers has cluster.teacher.actors x shards of its own."""
        return self._by_name[name].processes * (self._teachers if name == "teacher" else 1)

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
        processes = sum(map(self.processes_of, self._dealt))
        # Rounded down, so that the fractions of one device add up to at most 1.
        if not self.shared_devices:
            return math.floor(100 * (self.gpus - self._claimed) / processes) / 100
        return math.floor(100 / math.ceil(processes / self.shared_devices)) / 100

    def apart(self, *names: Role) -> bool:
        """Whether these roles compute on different devices: on GPUs that they do not share, at most one of them on the CPU."""
        return not self.shares_devices and sum(self.gpus_of(self.role(name)) == 0 for name in names) <= 1

    @property
    def shares_devices(self) -> bool:
        """Whether actors get fractions of devices, since there are more of them than devices."""
        wanted = sum(self.processes_of(name) * self.role(name).devices for name in self._dealt)
        return bool(self.gpus) and wanted > self.gpus - self._claimed

    @property
    def takes_turns_on_devices(self) -> bool:
        """Whether roles hold their devices in turn."""
        return self.residency and (self.shares_devices or not self.gpus)

    @property
    def shared_devices(self) -> int:
        """Whole devices that actors share. 0: none do, or those that do share what is left of one."""
        return math.floor(self.gpus - self._claimed) if self.shares_devices else 0

    def bundles(self, roles: Sequence[Role]) -> list[Role]:
        """The role of each actor."""
        return [name for name in roles for _ in range(self.processes_of(name))]

    @property
    def direct(self) -> WeightTransfer | None:
        """The backend that the GPUs of engines and learner allow: nccl where all have devices of their own, ipc where every
        engine shares the device of a learner's rank, None elsewhere, and where they hold their devices in turn."""
        roles = (self.rollout, self.learner)
        if self.takes_turns_on_devices or not all(self.gpus_of(role) for role in roles):
            return None
        if all(self.gpus_of(role) >= 1 for role in roles):
            return "nccl"
        if not self.shared_devices or any(role.gpus is not None for role in roles):
            return None  # Ray seats them, and where is not known before
        bundles = self.bundles(self._hosted)
        places = list(zip(bundles, homes(self, bundles), strict=True))
        devices = {name: {home for each, home in places if each == name} for name in ("rollout", "learner")}
        return "ipc" if devices["rollout"] <= devices["learner"] else None

    @property
    def _dealt(self) -> list[Role]:
        """The roles of the run without `gpus` of their own."""
        return [name for name in self._hosted if self.role(name).gpus is None]

    @property
    def _claimed(self) -> float:
        """GPUs of the roles with `gpus` of their own."""
        return sum(self.processes_of(name) * (self.role(name).gpus or 0.0) for name in self._hosted)


def _check_spans(cluster: ClusterConfig, name: Role, role: RoleConfig) -> None:
    """Raises ValueError where no nodes could hold the devices of one model."""
    span = f"cluster.{name}.across_nodes lets the devices of one model be on several nodes"
    if cluster.address is None:
        raise ValueError(f"{span}, and cluster.address is null, which is this machine; set cluster.address, or leave it out")
    if not cluster.gpus or role.gpus == 0:
        raise ValueError(f"{span}, and the role has no GPUs: on CPUs vLLM keeps them on one node; leave it out")
    if cluster.residency:
        raise ValueError(f"{span}, which are no other role's in turn; set cluster.residency=false")
    if role.devices == 1:
        cure = f"set cluster.{name}.pipeline_parallel or tensor_parallel above 1, or leave it out"
        raise ValueError(f"{span}, and each model of cluster.{name} has one device; {cure}")


def homes(config: ClusterConfig, bundles: Sequence[Role]) -> list[int]:
    """The bundle of each actor: its own, or, where actors share devices, one for each device, to which they are dealt in turn.
    Processes of one model or gradient follow one another, so that no two of them meet on a device."""
    found: list[int] = []
    dealt, shared = 0, config.shared_devices
    for name in bundles:
        if shared and config.role(name).gpus is None:
            found.append(dealt % shared)
            dealt += 1
        else:
            found.append(shared + len(found) - dealt)
    used = sorted(set(found))
    return [used.index(home) for home in found]
