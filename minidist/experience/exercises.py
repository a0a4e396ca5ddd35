"""Where exercises come from: rows of the training data, and rows held out of it for feedback."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.experience.draw import draw_rows
from minidist.types import Exercise, LabelledRow


@dataclass(frozen=True)
class TaskRows:
    """The same rows as student and teacher read them; without a teacher, `teacher` is empty."""

    student: Sequence[LabelledRow]
    teacher: Sequence[LabelledRow] = ()

    def __len__(self) -> int:
        return len(self.student)

    def take(self, indices: Sequence[int]) -> "TaskRows":
        """The rows at these positions."""
        teacher = [self.teacher[index] for index in indices] if self.teacher else ()
        return TaskRows([self.student[index] for index in indices], teacher)


@dataclass(frozen=True)
class Exercises:
    """One exercise a step: one shuffled pass over the training rows after another, and another over the feedback rows.

    Args:
        train: rows to train on.
        feedback: rows held out, as the student reads them; empty where the lesson needs none.
        batch_rows, feedback_rows: rows of a step.
        seed: of both orders.
        mask: hides tokens of a row at a step, for masked language modelling; None: rows are used as they are.
    """

    train: TaskRows
    feedback: Sequence[LabelledRow]
    batch_rows: int
    feedback_rows: int
    seed: int
    mask: Callable[[LabelledRow, int], LabelledRow] | None = None

    async def next(self, step: int) -> Exercise:
        """The exercise of step `step`, a function of the step and the seed alone."""
        drawn = self.train.take(draw_rows(len(self.train), self.batch_rows, step=step, seed=self.seed))
        student = tuple(drawn.student if self.mask is None else (self.mask(row, step) for row in drawn.student))
        teacher = student if self.mask is not None and drawn.teacher else tuple(drawn.teacher)
        return Exercise(step, student, teacher, self.feedback_at(step))

    def feedback_at(self, step: int) -> tuple[LabelledRow, ...]:
        """The feedback rows of step `step`, in an order of their own."""
        if not self.feedback:
            return ()
        seed = int(np.random.SeedSequence([self.seed, 1]).generate_state(1)[0])
        order = draw_rows(len(self.feedback), self.feedback_rows, step=step, seed=seed)
        return tuple(self.feedback[index] for index in order)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every draw is a function of the seed and the step."""
        return {}
