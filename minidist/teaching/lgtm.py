"""LGTM: the teacher learns by the influence of each row on the student's loss on held-out rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minidist.config.lessons import LGTMConfig
from minidist.losses.imitation import label_loss
from minidist.teaching.influence import central_difference, norm, normalised, row_weights
from minidist.teaching.lesson import Outcome
from minidist.teaching.online import MutualLesson
from minidist.teaching.pair import mean_loss
from minidist.types import Exercise


@dataclass(frozen=True)
class LGTM(MutualLesson[LGTMConfig]):
    """Learning good teacher matters (Ren et al., arXiv:2305.09651), in three forms of influence.

    Each step: a trial step of the student, with its optimizer's state, that is undone; the gradient g of its held-out loss
    there; the teacher's step; the student's step under the new teacher. With coefficient 0 it is online distillation, bit for
    bit.
    """

    def teach(self, exercise: Exercise) -> Outcome:
        if self.config.coefficient == 0:
            return super().teach(exercise)
        direction, metrics = self._direction(exercise)
        if self.config.influence == "hvp":
            metrics |= self._follow(exercise, direction)
            return Outcome(metrics | self.student_step(exercise))
        influence_B = self._influence(exercise, direction)
        if self.config.influence == "reweight":
            metrics |= self.step(self.teacher, exercise)
            weights_B = row_weights(influence_B, self.pair.group)
            return Outcome(metrics | self.student_step(exercise, self._tempered(weights_B)), influence_B)
        metrics |= self._weigh(exercise, influence_B)
        return Outcome(metrics | self.student_step(exercise), influence_B)

    def influence(self, exercise: Exercise) -> Tensor:
        """On the weights as they are, without a trial step: the rows need not be those of a step."""
        return self._influence(exercise, self._feedback(exercise)[0])

    def _direction(self, exercise: Exercise) -> tuple[list[Tensor], dict[str, float]]:
        """The gradient of the held-out loss after the student's trial step, which is undone; and figures."""
        sweep = self.pair.gradient(self.pair.student, exercise)
        with self.pair.student.trial():
            self.pair.student.step(sweep.gradient)
            direction, loss = self._feedback(exercise)
        return direction, {"influence/feedback_loss": loss}

    def _feedback(self, exercise: Exercise) -> tuple[list[Tensor], float]:
        return mean_loss(self.pair.student, exercise.feedback, self.pair, lambda found: found.row_means(label_loss(found)))

    def _influence(self, exercise: Exercise, direction: list[Tensor]) -> Tensor:
        """The influence of each of this rank's rows on the student's held-out loss, [B]."""
        parameters = list(self.pair.student.parameters.values())
        [influence_B] = central_difference(
            lambda: [self.pair.losses(self.pair.student, exercise)], parameters, direction, radius=self.config.radius
        )
        return influence_B

    def _follow(self, exercise: Exercise, direction: list[Tensor]) -> dict[str, float]:
        """The teacher's step along the gradient of its loss minus the mixed Hessian-vector product h."""
        sweep = self.pair.gradient(self.teacher, exercise)
        parameters = list(self.pair.student.parameters.values())
        product = central_difference(lambda: self._mixed(exercise), parameters, direction, radius=self.config.radius)
        sizes = {"influence/h_norm": norm(product), "influence/loss_norm": norm(sweep.gradient)}
        factor = self.config.coefficient
        if self.config.relative:
            factor *= sizes["influence/loss_norm"] / sizes["influence/h_norm"] if sizes["influence/h_norm"] else 0.0
        gradient = [each - factor * h for each, h in zip(sweep.gradient, product, strict=True)]
        return sizes | sweep.figures | self.teacher.step(gradient)

    def _mixed(self, exercise: Exercise) -> list[Tensor]:
        """The teacher's gradient of the loss whose derivative by the student's weights is h."""
        if self.config.through == "teacher_loss":
            return self.pair.gradient(self.teacher, exercise).gradient
        return self.pair.gradient_through(exercise)

    def _weigh(self, exercise: Exercise, influence_B: Tensor) -> dict[str, float]:
        """The teacher's step on its loss and on the mean of each row's influence times its imitation loss."""
        sweep = self.pair.gradient(self.teacher, exercise)
        weights_B = normalised(influence_B, self.pair.group)
        weighted = self.pair.gradient(self.teacher, exercise, weights_B, imitation=True).gradient
        factor = self.config.coefficient
        return sweep.figures | self.teacher.step([a + factor * b for a, b in zip(sweep.gradient, weighted, strict=True)])

    def _tempered(self, weights_B: Tensor) -> Tensor:
        """Weights between 1 each (coefficient 0) and those of the influence (coefficient 1)."""
        share = min(1.0, self.config.coefficient)
        return torch.lerp(torch.ones_like(weights_B), weights_B, share)
