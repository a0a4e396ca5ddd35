"""What happens in one step of `minidist teach`: the base of all lessons, and the lessons in which no teacher learns."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from minidist.teaching.learning import Learning
from minidist.teaching.pair import Pair
from minidist.types import Exercise


@dataclass(frozen=True)
class Lesson:
    """The student learns from the rows of a step and from a teacher that does not change, or from labels alone.

    Subclasses say what else happens in a step. All ranks make the same calls.
    """

    pair: Pair

    @property
    def models(self) -> Mapping[str, Learning]:
        """All models of the lesson, by name: what a checkpoint holds."""
        return self.pair.models

    def teach(self, exercise: Exercise) -> "Outcome":
        """The optimizer steps of one step of the run."""
        return Outcome(self.student_step(exercise))

    def student_step(self, exercise: Exercise, weights_B: Tensor | None = None) -> dict[str, float]:
        """The student's optimizer step; `weights_B`: weight of each of this rank's rows in the loss."""
        return self.step(self.pair.student, exercise, weights_B)

    def step(self, learner: Learning, exercise: Exercise, weights_B: Tensor | None = None) -> dict[str, float]:
        """An optimizer step of one of the two along the gradient of its loss."""
        sweep = self.pair.gradient(learner, exercise, weights_B)
        return sweep.figures | learner.step(sweep.gradient)

    def influence(self, exercise: Exercise) -> Tensor:
        """The influence of each of this rank's rows on the student's loss on the feedback rows, [B]; no weights change."""
        raise AssertionError(f"{type(self).__name__} measures no influence")


@dataclass(frozen=True)
class Outcome:
    """Figures of a step, and each row's influence [B] where the lesson measured it."""

    metrics: dict[str, float]
    influence: Tensor | None = None


@dataclass(frozen=True)
class Phase:
    """Steps of the run, up to `end`, in which one pair learns."""

    end: int
    pair: Pair
    shared_rows: bool = False
    """Whether the teacher reads the rows as the student does."""


@dataclass(frozen=True)
class PhasedLesson(Lesson):
    """One pair after another: a student with several teachers in turn (RCO), or a chain of assistants (TAKD). `pair` is the
    last one."""

    phases: tuple[Phase, ...] = ()

    @property
    def models(self) -> Mapping[str, Learning]:
        return {name: model for phase in self.phases for name, model in phase.pair.models.items()}

    def teach(self, exercise: Exercise) -> Outcome:
        number = next(number for number, phase in enumerate(self.phases) if exercise.step < phase.end)
        phase = self.phases[number]
        rows = replace(exercise, teacher=exercise.student) if phase.shared_rows else exercise
        metrics = Lesson(phase.pair).teach(rows).metrics
        return Outcome(metrics | {"lesson/phase": float(number)})
