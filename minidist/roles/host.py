"""The roles of a stage, as many of each as its configuration says."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from minidist.cluster.cluster import Cluster
from minidist.concurrency import both, nothing, one_by_one, together
from minidist.config import Config, DistillConfig
from minidist.config.cluster import Role
from minidist.config.engines import engine_limits
from minidist.config.models import ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import TeacherConfig
from minidist.learners.ranks import LearnerRanks
from minidist.preflight.plan import DistillPlan, Plan
from minidist.protocols import Learner, Teacher
from minidist.roles.make import LearnerSetup, RoleContext, TeacherSections, make_engine, make_learner, make_teacher
from minidist.rollout.pool import Engines
from minidist.teachers.cache.store import CachedTeacher
from minidist.teachers.lost import RescoringLearner
from minidist.teachers.pool import Shards, Teachers
from minidist.teachers.routed import RoutedTeachers
from minidist.types import MAIN


@dataclass(frozen=True)
class HostedRoles:
    """The roles of one distillation; None where it needs none of a kind."""

    learner: Learner
    engines: Engines | None
    teachers: Teachers | RoutedTeachers | None


class Roles:
    """Hosts the roles that a stage asks for: as many of each as the configuration says, behind the face of one."""

    def __init__(self, cluster: Cluster, config: Config, plan: Plan, *, mixing: bool = False) -> None:
        """`mixing`: engines and teachers take turns in some run that they serve, if not in that of `config`."""
        self.cluster = cluster
        self.config = config
        self.plan = plan
        self.mixing = mixing or (isinstance(config, DistillConfig) and config.takes_turns)

    async def engines(self, model: ModelConfig, rollout: RolloutConfig, *, teacher: TeacherConfig | None = None) -> Engines:
        """cluster.rollout.actors engines that hold `model`; engines in transformers also hold `teacher`, to write with."""
        arguments = self.engine_arguments(model, rollout, teacher)
        hosting = [self.cluster.host("rollout", make_engine, **arguments) for _ in range(self.config.cluster.rollout.actors)]
        hosted = [self.cluster.supervise([engine], make_engine, arguments) for engine in await together(hosting)]
        deterministic = self.config.run.deterministic
        limits = engine_limits(rollout, longest=self.plan.max_tokens, on_gpu=arguments["context"].on_gpu)
        queue = rollout.engine == "vllm" and not deterministic
        return Engines(hosted, limits.sequences if queue else None, waits=deterministic)

    def engine_arguments(self, model: ModelConfig, rollout: RolloutConfig, teacher: TeacherConfig | None) -> dict[str, Any]:
        """The arguments of make_engine."""
        return {"context": self._context("rollout"), "model": model, "rollout": rollout, "teacher": teacher}

    async def teachers(self, config: TeacherConfig, *, mixing: bool = False) -> Teachers:
        """cluster.teacher.actors teachers, each in as many shards as it needs. `mixing`: they also take turns with students."""
        if self.plan.cache is not None:
            return Teachers([CachedTeacher(config, self.plan.cache)])
        return await self._pool(config, self.plan.longest, mixing)

    async def routed_teachers(self, config: DistillConfig, longest: Mapping[str, int]) -> RoutedTeachers:
        """All teachers of the run, each with cluster.teacher.actors actors. `longest`: most tokens of a row of each, by its
        key."""
        assert config.routing is not None
        pools = await together(self._pool(each, longest[key]) for key, each in config.named_teachers.items())
        heads = TeacherSections(config.teachers).heads
        return RoutedTeachers(dict(zip(config.teachers, pools, strict=True)), heads, config.routing.shares)

    async def _pool(self, config: TeacherConfig, longest: int, mixing: bool = False) -> Teachers:
        hosting = [self._teacher(config, longest, mixing) for _ in range(self.config.cluster.teacher.actors)]
        return Teachers(await together(hosting), waits=self.config.run.deterministic)

    async def _teacher(self, config: TeacherConfig, longest: int, mixing: bool) -> Teacher:
        context = replace(self._context("teacher"), max_tokens=longest)
        shards, arguments = self.config.cluster.teacher.shards, dict[str, Any](context=context, config=config)
        if shards > 1:
            ranks = await self.cluster.host_group("teacher", make_teacher, shards, **arguments)
            return self.cluster.supervise(ranks, make_teacher, arguments, Shards)
        arguments["mixing"] = mixing
        teacher = await self.cluster.host("teacher", make_teacher, **arguments)
        return self.cluster.supervise([teacher], make_teacher, arguments)

    async def learner(self, setup: LearnerSetup) -> Learner:
        """The learner's ranks, as one learner. Without objectives it only measures, and has one rank."""
        ranks = self.config.cluster.learner.ranks if setup.objectives else 1
        members = await self._ranks(ranks, context=self._context("learner"), **vars(setup))
        return members[0] if len(members) == 1 else cast(Learner, LearnerRanks(members))

    async def _ranks(self, count: int, **arguments: Any) -> list[Learner]:
        return await self.cluster.host_group("learner", make_learner, count, **arguments)

    async def drop_learner(self) -> None:
        """End all roles, since the learner is lost: they are asked for again."""
        await self.cluster.dismiss_all("rollout", "teacher", "learner")

    async def dismiss(self, *roles: Any) -> None:
        """End roles and free their bundles."""
        for role in roles:
            if isinstance(role, Engines | Teachers | RoutedTeachers | LearnerRanks):
                await self.dismiss(*role.members)
            else:
                await self.cluster.dismiss(role)

    def _context(self, name: Role) -> RoleContext:
        config, role = self.config, self.config.cluster.role(name)
        return RoleContext(
            renderer=self.plan.renderer,
            vocabulary=self.plan.vocabulary,
            max_tokens=self.plan.max_tokens,
            seed=config.run.seed,
            steps=config.run.steps * (config.objective.updates if isinstance(config, DistillConfig) else 1),
            deterministic=config.run.deterministic,
            on_gpu=config.cluster.gpus_of(role) > 0,
            split=role.model_dump(include={"tensor_parallel", "pipeline_parallel", "across_nodes"}),
            transfer=config.channel if isinstance(config, DistillConfig) and name == "rollout" else None,
            ratio_max=config.ratio_max if isinstance(config, DistillConfig) else None,
            sleeps=config.cluster.takes_turns_on_devices,
            turns=self.mixing,
        )


async def host_roles(config: DistillConfig, roles: Roles) -> HostedRoles:
    """The roles that a distillation needs, started side by side; where they share devices, engines, teachers and learner start
    one after another: vLLM counts as its own what others take of a device, or free, while it measures the memory it needs."""
    objectives = {MAIN: config.objective} | {name: stream.objective for name, stream in config.streams.items()}
    teacher = _sections(config) if config.asks_actors or config.teacher.learns else None
    lockstep = config.teacher if config.teacher_mix > 0 and not config.takes_turns else None
    writing = roles.engines(config.student, config.rollout, teacher=lockstep) if config.asks_engines else nothing()
    scoring = _teachers(config, roles) if config.asks_actors else nothing()
    learning = roles.learner(LearnerSetup(config.student, config.learner, objectives, teacher))
    if config.cluster.shares_devices:
        engines, teachers, learner = await one_by_one(writing, scoring, learning)
    else:
        learner, (engines, teachers) = await both(learning, both(writing, scoring))
    return HostedRoles(learner if teachers is None else cast(Learner, RescoringLearner(learner, teachers)), engines, teachers)


def _sections(config: DistillConfig) -> TeacherConfig | TeacherSections:
    """The teacher of the run, or several."""
    return TeacherSections(config.teachers, not config.mixes_teachers) if config.teachers else config.teacher


async def _teachers(config: DistillConfig, roles: Roles) -> Teachers | RoutedTeachers:
    """The actors of the teacher, or of several."""
    if not config.teachers:
        return await roles.teachers(config.teacher, mixing=config.takes_turns)
    assert isinstance(roles.plan, DistillPlan)
    return await roles.routed_teachers(config, roles.plan.longest_rows)
