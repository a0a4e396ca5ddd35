"""The roles of a stage, as many of each as the configuration says, each behind the face of one."""

from dataclasses import dataclass
from typing import Any

from minidist.cluster.cluster import Cluster
from minidist.concurrency import both, nothing, together
from minidist.config import Config, DistillConfig
from minidist.config.cluster import RoleConfig
from minidist.config.learner import LearnerConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import TeacherConfig
from minidist.data.rendering import Renderer
from minidist.learners.ranks import LearnerRanks
from minidist.preflight.plan import Plan
from minidist.protocols import Learner, RolloutEngine, Teacher
from minidist.roles.make import make_engine, make_learner, make_teacher
from minidist.rollout.mixed.turns import Alternating, Lockstep, Mixtures
from minidist.rollout.pool import Engines
from minidist.teachers.cache.store import CachedTeacher
from minidist.teachers.pool import Shards, Teachers
from minidist.types import MAIN


@dataclass(frozen=True)
class HostedRoles:
    """The roles of one distillation; None where it needs none of a kind."""

    learner: Learner
    engines: Engines | None
    teachers: Teachers | None


class Roles:
    """Hosts what a stage asks for."""

    def __init__(self, cluster: Cluster, config: Config, plan: Plan) -> None:
        self.cluster = cluster
        self.config = config
        self.plan = plan

    async def engines(self, model: ModelConfig, rollout: RolloutConfig, *, teacher: TeacherConfig | None = None) -> Engines:
        """cluster.rollout.actors engines that hold `model`; those in transformers also `teacher`, to write with."""
        arguments = self.engine_arguments(model, rollout, teacher)
        hosting = [self.cluster.host("rollout", make_engine, **arguments) for _ in range(self.config.cluster.rollout.actors)]
        return Engines(await together(hosting))

    def engine_arguments(self, model: ModelConfig, rollout: RolloutConfig, teacher: TeacherConfig | None) -> dict[str, Any]:
        """What each engine is made from."""
        role = self.config.cluster.rollout
        return {
            "model": model,
            "rollout": rollout,
            "max_tokens": self.plan.max_tokens,
            "tensor_parallel": role.tensor_parallel,
            "seed": self.config.run.seed,
            "deterministic": self.config.run.deterministic,
            "teacher": teacher,
            **self._common(role),
        }

    async def teachers(self, config: TeacherConfig, *, mixing: bool = False) -> Teachers:
        """cluster.teacher.actors teachers, each in as many shards as it needs. `mixing`: they also take turns with students."""
        role = self.config.cluster.teacher
        if config.backend == "cache":
            assert self.plan.cache is not None
            return Teachers([CachedTeacher(config, self.plan.cache)])
        return Teachers(await together(self._teacher(config, mixing) for _ in range(role.actors)))

    async def learner(
        self,
        student: StudentConfig,
        config: LearnerConfig,
        objectives: dict[str, dict[str, Any]],
        *,
        teacher: TeacherConfig | None,
    ) -> Learner:
        """The learner's ranks, as one learner. Without objectives it only measures, and is one."""
        role = self.config.cluster.learner
        members = await self._ranks(
            role.ranks if objectives else 1,
            student=student,
            teacher=teacher,
            config=config,
            objectives=objectives,
            steps=self.config.run.steps * (self.config.updates if isinstance(self.config, DistillConfig) else 1),
            seed=self.config.run.seed,
            deterministic=self.config.run.deterministic,
            **self._common(role),
        )
        return members[0] if len(members) == 1 else LearnerRanks(members)

    async def _ranks(self, count: int, **arguments: Any) -> list[Learner]:
        return await self.cluster.host_group("learner", make_learner, count, **arguments)

    async def dismiss(self, *roles: Any) -> None:
        """End them and free their places."""
        for role in roles:
            if isinstance(role, Engines | Teachers | LearnerRanks):
                await self.dismiss(*role.members)
            else:
                await self.cluster.dismiss(role)

    async def _teacher(self, config: TeacherConfig, mixing: bool) -> Teacher:
        role = self.config.cluster.teacher
        arguments = {
            "config": config,
            "max_tokens": self._longest(),
            "tensor_parallel": role.tensor_parallel,
            "deterministic": self.config.run.deterministic,
            **self._common(role),
        }
        if role.shards > 1:
            return Shards(await self.cluster.host_group("teacher", make_teacher, role.shards, **arguments))
        return await self.cluster.host("teacher", make_teacher, mixing=mixing, **arguments)

    def _longest(self) -> int:
        """The longest sequence a teacher sees: a rollout, or a row of a stream beside the main one."""
        rows = (len(example.tokens) for examples in self.plan.streams.values() for example in examples)
        return max(self.plan.max_tokens, *rows, 0)

    def _common(self, role: RoleConfig) -> dict[str, Any]:
        return {
            "renderer": self.plan.renderer,
            "vocabulary": self.plan.vocabulary,
            "on_gpu": self.config.cluster.gpus_of(role) > 0,
        }


async def host_roles(config: DistillConfig, roles: Roles) -> HostedRoles:
    """The roles that a distillation needs, started side by side."""
    objectives = {MAIN: config.objective.model_dump()}
    objectives |= {name: stream.objective.model_dump() for name, stream in config.streams.items()}
    teacher = config.teacher if config.asks_actors or config.teacher.placement == "learner" else None
    lockstep = config.teacher if config.teacher_mix > 0 and not config.takes_turns else None
    learner, (engines, teachers) = await both(
        roles.learner(config.student, config.learner, objectives, teacher=teacher),
        both(
            roles.engines(config.student, config.rollout, teacher=lockstep) if config.asks_engines else nothing(),
            roles.teachers(config.teacher, mixing=config.takes_turns) if config.asks_actors else nothing(),
        ),
    )
    return HostedRoles(learner, engines, teachers)


def writer(config: DistillConfig, engines: Engines, teachers: Teachers | None, renderer: Renderer) -> RolloutEngine:
    """Who writes the student's share of the text: the engines themselves, or they and the teachers, token by token."""
    alpha, students = config.teacher_mix, engines.members
    if not alpha:
        return engines
    if not config.takes_turns:
        return Mixtures([Lockstep(student, alpha) for student in students])
    assert teachers is not None
    count = len(teachers.members)
    sharing = -(-len(students) // count)
    pairs: list[tuple[Any, Any]] = [(student, teachers.members[place % count]) for place, student in enumerate(students)]
    return Mixtures([Alternating(student, teacher, alpha, renderer, sharing=sharing) for student, teacher in pairs])
