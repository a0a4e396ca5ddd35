"""MetaDistil: the teacher follows the student's loss on held-out rows through a trial update of the student, exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minidist.config.lessons import MetaConfig
from minidist.losses.imitation import label_loss
from minidist.models.classifiers import twice_differentiable
from minidist.teaching.influence import moved, norm
from minidist.teaching.lesson import Outcome
from minidist.teaching.online import MutualLesson
from minidist.teaching.pair import mean_loss
from minidist.types import Exercise


@dataclass(frozen=True)
class Meta(MutualLesson[MetaConfig]):
    """Meta distillation (Zhou, Xu & McAuley, arXiv:2106.04570).

    The student's trial update is theta' = theta - eta grad L(theta, T), one step of plain SGD. The teacher's gradient of the
    held-out loss L_v(theta') is -eta times the derivative by T of <grad L(theta, T), v>, with v = grad L_v(theta') held fixed.
    In this form micro-batches and ranks add up, and the memory of second derivatives is that of one micro-batch. Then the
    student is updated by its own optimizer under the new teacher.
    """

    def teach(self, exercise: Exercise) -> Outcome:
        gradient, metrics = self.gradient(exercise)
        if self.config.loss:
            sweep = self.pair.gradient(self.teacher, exercise)
            metrics |= sweep.figures
            gradient = [a + b for a, b in zip(gradient, sweep.gradient, strict=True)]
        metrics |= self.teacher.step(gradient)
        return Outcome(metrics | self.student_step(exercise))

    def gradient(self, exercise: Exercise) -> tuple[list[Tensor], dict[str, float]]:
        """The teacher's gradient of the student's held-out loss after the trial update, and figures; no weights change."""
        student = self.pair.student
        sweep, parameters = self.pair.gradient(student, exercise), list(student.parameters.values())
        with moved(parameters, sweep.gradient, -self.config.inner_rate):
            loss_of = lambda found: found.row_means(label_loss(found))  # noqa: E731
            direction, loss = mean_loss(student, exercise.feedback, self.pair, loss_of)
        gradient = self.teacher.gradient(lambda: self._accumulate(exercise, direction))
        return gradient, {"meta/feedback_loss": loss, "meta/gradient_norm": norm(gradient)}

    def _accumulate(self, exercise: Exercise, direction: list[Tensor]) -> None:
        """Add -eta times the derivative of <grad L, v> by the teacher's weights."""
        student, parameters = self.pair.student, list(self.pair.student.parameters.values())
        for micro in self.pair.micros(exercise):
            with twice_differentiable():
                loss_B, _ = self.pair.loss_through(micro)
                mean = loss_B.sum() / self.pair.count(exercise)
                found = torch.autograd.grad(mean, parameters, create_graph=True, allow_unused=True)
                product = sum((each * v).sum() for each, v in zip(found, direction, strict=True) if each is not None)
                assert isinstance(product, Tensor), f"the loss of the {student.name} does not depend on its weights"
                (-self.config.inner_rate * product).backward(inputs=list(self.teacher.parameters.values()))
