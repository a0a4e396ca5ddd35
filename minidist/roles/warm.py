"""Roles whose processes stay from one model, or one run, to the next."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidist.concurrency import together
from minidist.config import Config
from minidist.config.cluster import Role
from minidist.config.models import ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import TeacherConfig
from minidist.learners.ranks import LearnerRanks
from minidist.preflight.plan import Plan
from minidist.protocols import Learner
from minidist.roles.host import Roles
from minidist.roles.make import LearnerSetup, make_engine, make_learner
from minidist.rollout.pool import Engines
from minidist.teachers.pool import Teachers


class WarmRoles(Roles):
    """Engines and teachers start at the first call and stay; the learner is made anew in its processes.

    Args:
        roles: makes engines and teachers, which serve every run.
        teacher: its head goes to each learner, whether the objective needs it or not: a student is measured with it afterwards.
    """

    def __init__(self, roles: Roles, *, teacher: TeacherConfig | None = None) -> None:
        super().__init__(roles.cluster, roles.config, roles.plan)
        self._cold = roles
        self._teacher_config = teacher
        self._lockstep = False
        self._engines: Engines | None = None
        self._teachers: Teachers | None = None
        self._learner: Learner | None = None
        self.path: Path | None = None
        """The model whose weights engines and learner hold, where `student` loaded it."""

    def serve(self, config: Config, plan: Plan) -> "WarmRoles":
        """The next learner is made for this run."""
        self.config = config
        self.plan = plan
        return self

    async def engines(self, model: ModelConfig, rollout: RolloutConfig, *, teacher: TeacherConfig | None = None) -> Engines:
        """The warm engines; those that write with a teacher in lockstep are made anew with it, and without it again."""
        lockstep = teacher is not None
        if self._engines is None:
            self._engines = await self._cold.engines(model, rollout, teacher=teacher)
        elif lockstep != self._lockstep:
            arguments = self._cold.engine_arguments(model, rollout, teacher)
            made = await together(self.cluster.restart([member], make_engine, **arguments) for member in self._engines.members)
            self._engines = Engines([engine for [engine] in made], waits=self._cold.config.run.deterministic)
        self._lockstep = lockstep
        return self._engines

    @property
    def warm_learner(self) -> Learner:
        """The last learner."""
        assert self._learner is not None
        return self._learner

    async def warm_engines(self, model: ModelConfig, rollout: RolloutConfig) -> Engines:
        """The warm engines as they are, with or without a teacher; new ones where none are warm."""
        return self._engines or await self.engines(model, rollout)

    async def teachers(self, config: TeacherConfig, *, mixing: bool = False) -> Teachers:
        """The warm teachers."""
        if self._teachers is None:
            self._teachers = await self._cold.teachers(config, mixing=mixing or self._cold.mixing)
        return self._teachers

    async def learner(self, setup: LearnerSetup) -> Learner:
        """A new learner, in the processes of the last one."""
        self._learner = await super().learner(replace(setup, teacher=setup.teacher or self._teacher_config))
        return self._learner

    async def drop_learner(self) -> None:
        """End all roles but warm engines and teachers: the next learner has processes of its own."""
        self._learner = None
        roles: dict[Role, Any] = {"rollout": self._engines, "teacher": self._teachers, "learner": None}
        lost: list[Role] = [name for name, role in roles.items() if role is None]
        await self.cluster.dismiss_all(*lost)

    async def student(self, path: Path, start: Callable[[Path], Awaitable[tuple[Engines, Learner]]]) -> tuple[Engines, Learner]:
        """Engines and learner with the weights at `path`: the warm ones where only weights differ, else those of `start`."""
        if self._engines is None or self._learner is None or self.path is None:
            self._engines, self._learner = await start(path)
        elif path != self.path and same_architecture(self.path, path):
            await self._engines.load(path)
            await self._learner.load(path)
        elif path != self.path:
            await self.dismiss(self._engines, self._learner)
            self._engines = self._learner = None
            self._engines, self._learner = await start(path)
        self.path = path
        return self._engines, self._learner

    async def _ranks(self, count: int, **arguments: Any) -> list[Learner]:
        if self._learner is None:
            return await super()._ranks(count, **arguments)
        members = self._learner.members if isinstance(self._learner, LearnerRanks) else [self._learner]
        return await self.cluster.restart(members, make_learner, **arguments)


def same_architecture(left: Path, right: Path) -> bool:
    """Whether two checkpoints differ in their weights alone."""
    from transformers import AutoConfig

    ignored = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
    shapes = [
        {key: value for key, value in AutoConfig.from_pretrained(path).to_dict().items() if key not in ignored}
        for path in (left, right)
    ]
    return shapes[0] == shapes[1]
