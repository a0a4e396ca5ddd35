"""Online distillation: teacher and student learn in turns, each from labels and from the other."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from minidist.config.lessons import MutualConfig, OnlineConfig
from minidist.teaching.learning import Learning
from minidist.teaching.lesson import Lesson, Outcome
from minidist.types import Exercise

C = TypeVar("C", bound=MutualConfig)


@dataclass(frozen=True)
class MutualLesson(Lesson, Generic[C]):
    """A lesson whose teacher learns. `config`: the lesson's section."""

    config: C

    @property
    def teacher(self) -> Learning:
        assert self.pair.teacher is not None
        return self.pair.teacher

    def teach(self, exercise: Exercise) -> Outcome:
        """The teacher first; the student then learns from its new weights."""
        metrics = self.step(self.teacher, exercise)
        return Outcome(metrics | self.student_step(exercise))


@dataclass(frozen=True)
class Online(MutualLesson[OnlineConfig]):
    """Online distillation in three orders: the teacher moves first (ProKT: Shi et al., arXiv:2009.12683), the student does, or
    both at once, each from the other's old predictions."""

    def teach(self, exercise: Exercise) -> Outcome:
        if self.config.order == "teacher_first":
            return super().teach(exercise)
        if self.config.order == "student_first":
            metrics = self.student_step(exercise)
            return Outcome(metrics | self.step(self.teacher, exercise))
        models = (self.teacher, self.pair.student)
        sweeps = [self.pair.gradient(model, exercise) for model in models]  # both before either moves
        metrics: dict[str, float] = {}
        for model, sweep in zip(models, sweeps, strict=True):
            metrics |= sweep.figures | model.step(sweep.gradient)
        return Outcome(metrics)
