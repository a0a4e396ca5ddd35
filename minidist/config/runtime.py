"""`cluster`, `evaluation`, `canaries`: on what a run works, and how it is watched."""

import math
from typing import Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.learning import LearnerConfig
from minidist.config.models import DType, TeacherConfig

Placement = Literal["pack", "spread", "strict_pack", "strict_spread"]
AlarmName = Literal["length", "truncated", "repetition", "distinct", "clip", "weight_max", "weight_min", "disliked", "age"]


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

    def gpus_of(self, role: RoleConfig) -> float:
        """GPUs that an actor of `role` gets."""
        if role.gpus is not None or self.gpus == 0:
            return role.gpus or 0.0
        roles: tuple[RoleConfig, ...] = (self.rollout, self.teacher, self.learner)
        if sum(each.processes * each.devices for each in roles) <= self.gpus:
            return float(role.devices)
        # Rounded down, so that the shares of one device never add up to more than it.
        return math.floor(100 / math.ceil(self.processes / self.gpus)) / 100


class EvaluationConfig(Section):
    """What is measured on held-out prompts while training."""

    every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; distillation makes one more before the first step and after the last. None: none."""
    prompts: int = Field(default=128, ge=1)
    """How many of the validation rows."""
    patience: int | None = Field(default=None, ge=1)
    """sft: stop when the validation loss has not fallen for so many evaluations, and keep the best weights."""


class CanaryConfig(Section):
    """Checks that stop a run whose numbers look right but are not, and alarms of its health."""

    every: int = Field(default=20, ge=1)
    """Steps between checks of a batch; the first batch is always checked, and every weight sync is proved."""
    logprob_tolerance_nats: float | None = Field(default=None, gt=0)
    """Largest mean difference between the engine's and the learner's log-probabilities of the same tokens. None: 1e-3 in
    float32, 0.05 in 16 bits."""
    sync_tolerance_nats: float | None = Field(default=None, gt=0)
    """The same for the probe after a weight sync, largest difference. None: 5e-3 in float32, 0.5 in 16 bits."""
    uniform_margin: float = Field(default=0.02, ge=0, lt=1)
    """A teacher whose mean log-probability is within this share of -ln V is taken for an untrained one."""
    alarm_length: float | None = Field(default=0.5, gt=0)
    """Mean length below this share of the first step's raises an alarm. None switches an alarm off, this one and each below."""
    alarm_truncated: float | None = Field(default=0.5, gt=0, le=1)
    """Share of truncated answers above which one is raised."""
    alarm_repetition: float | None = Field(default=0.5, gt=0, le=1)
    """Share of 4-grams that an answer wrote before, above which one is raised."""
    alarm_distinct: float | None = Field(default=0.5, gt=0)
    """Distinct 4-grams among all of a step's, below this share of the first step's: the answers become one another."""
    alarm_clip: float | None = Field(default=0.5, ge=0, le=1)
    """Share of a policy gradient's tokens whose ratio is clipped, and which teach nothing."""
    alarm_weight_max: float | None = Field(default=10.0, gt=0)
    """Largest importance weight of a token; those of teacher-mixed sampling are at most 1 / (1 - teacher_mix)."""
    alarm_weight_min: float | None = Field(default=1e-4, gt=0)
    """Smallest importance weight of a token: one that the student would hardly ever have written."""
    alarm_disliked: float | None = Field(default=0.5, ge=0, le=1)
    """Share of sampled tokens that the teacher finds less than a sixth as likely as the student does."""
    alarm_age: float | None = Field(default=16.0, ge=0)
    """Optimizer steps between the weights that wrote a token and those it is used on."""
    stop_on: list[AlarmName] = Field(default=[])
    """Alarms that end the run: after the step it leaves a checkpoint, as with Ctrl-C, and exits with code 1. Which limits there
    are and which of them stop a run may differ when it goes on."""

    @model_validator(mode="after")
    def _can_ring(self) -> "CanaryConfig":
        for name in self.stop_on:
            if getattr(self, f"alarm_{name}") is None:
                raise ValueError(
                    f"canaries.stop_on names {name}, and canaries.alarm_{name} is null: set its limit, or take the name out"
                )
        return self


def check_learner(learner: LearnerConfig, cluster: ClusterConfig, dtype: DType) -> None:
    """Refuse what a learner cannot do."""
    if learner.backend == "single" and cluster.learner.ranks > 1:
        raise ValueError("cluster.learner.ranks above 1 need learner.backend=deepspeed")
    if learner.offload_parameters and learner.zero_stage != 3:
        raise ValueError(f"learner.offload_parameters needs learner.zero_stage=3, not {learner.zero_stage}")
    if learner.offload_optimizer and learner.zero_stage == 0:
        raise ValueError("learner.offload_optimizer needs learner.zero_stage 1, 2 or 3")
    if learner.kernel == "liger" and not cluster.gpus:
        raise ValueError("learner.kernel liger runs on a GPU, and cluster.gpus is 0; set learner.kernel=torch")
    if learner.backend == "deepspeed" and learner.zero_stage == 0 and dtype != "float32":
        raise ValueError(f"learner.zero_stage 0 keeps no float32 copy of {dtype} weights; set learner.zero_stage=1")


def check_teacher_role(teacher: TeacherConfig, role: TeacherRoleConfig) -> None:
    """Refuse a teacher that cannot be split as it is told to be."""
    for name, backend in (("tensor_parallel", "vllm"), ("shards", "hf")):
        if getattr(role, name) > 1 and teacher.backend != backend:
            raise ValueError(
                f"cluster.teacher.{name} splits a teacher of backend {backend}, not of {teacher.backend}; set it to "
                f"1, or teacher.backend={backend}"
            )
    if teacher.backend == "cache" and role.actors > 1:
        raise ValueError(f"cluster.teacher.actors is {role.actors}, and teacher.backend cache starts none; leave it out")
