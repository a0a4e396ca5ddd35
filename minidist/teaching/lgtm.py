"""LGTM: the teacher learns by the influence of each row on the student's loss on held-out rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minidist.config.lessons import LGTMConfig
from minidist.losses.imitation import label_loss
from minidist.losses.predictions import Predictions
from minidist.teaching.influence import Sides, both_sides, norm, normalised, row_weights
from minidist.teaching.learning import Learning
from minidist.teaching.lesson import Outcome
from minidist.teaching.online import MutualLesson
from minidist.teaching.pair import Micro, Sweep, mean_loss
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
        with self.pair.student.trial():
            self.pair.student.step(self.pair.gradient(self.pair.student, exercise).gradient)
            direction, loss = self._feedback(exercise)
        return direction, {"influence/feedback_loss": loss}

    def _feedback(self, exercise: Exercise) -> tuple[list[Tensor], float]:
        return mean_loss(self.pair.student, exercise.feedback, self.pair, lambda found: found.row_means(label_loss(found)))

    def _influence(self, exercise: Exercise, direction: list[Tensor]) -> Tensor:
        """The influence of each of this rank's rows on the student's held-out loss, [B]."""
        found = []
        for micro in self.pair.micros(exercise):  # the teacher, which does not move, predicts once
            found.append(self.influence_of(micro, self.pair.imitated(self.pair.student, micro), direction))
        return torch.cat(found)

    def influence_of(self, micro: Micro, imitated: Predictions | None, direction: list[Tensor]) -> Tensor:
        """The influence of some rows, [B], where the student imitates these predictions."""
        student = self.pair.student
        sides = self._sides(micro, direction, hidden=student.needs_hidden)
        above_B, below_B = (student.loss(predictions, imitated)[0] for predictions in (sides.above, sides.below))
        return (above_B - below_B) * sides.scale

    def _sides(self, micro: Micro, direction: list[Tensor], *, hidden: bool) -> Sides[Predictions]:
        """The student's predictions a little ahead and a little behind its weights, along the direction, without gradient."""
        student, parameters = self.pair.student, list(self.pair.student.parameters.values())
        predict = lambda: student.predict(micro.student, hidden=hidden)  # noqa: E731
        return both_sides(predict, parameters, direction, radius=self.config.radius)

    def _follow(self, exercise: Exercise, direction: list[Tensor]) -> dict[str, float]:
        """The teacher's step along the gradient of its loss minus the mixed Hessian-vector product h."""
        sweep, product = self._gradients(exercise, direction)
        sizes = {"influence/h_norm": norm(product), "influence/loss_norm": norm(sweep.gradient)}
        factor = self.config.coefficient
        if self.config.relative:
            factor *= sizes["influence/loss_norm"] / sizes["influence/h_norm"] if sizes["influence/h_norm"] else 0.0
        gradient = [each - factor * h for each, h in zip(sweep.gradient, product, strict=True)]
        return sizes | sweep.figures | self.teacher.step(gradient)

    def _gradients(self, exercise: Exercise, direction: list[Tensor]) -> tuple[Sweep, list[Tensor]]:
        """The gradient of the teacher's loss, and h, by two forward passes of the student and one of the teacher.

        h is the difference of the teacher's gradients on two sides of the student's weights. The teacher's weights are the same
        on both, and in its loss, so h is the gradient of the difference of the losses, through the same predictions. Of the
        student's loss the teacher's predictions are those without dropout, by a pass of their own.
        """
        if self.config.through == "loss":
            return self.pair.gradient(self.teacher, exercise), self.teacher.gradient(lambda: self._descend(exercise, direction))
        parameters = list(self.teacher.parameters.values())
        product = [torch.zeros_like(each) for each in parameters]

        def along(own: Predictions, micro: Micro) -> None:
            slope = self._slope(own, self._sides(micro, direction, hidden=self.teacher.needs_hidden), self.teacher)
            mean = slope.sum() / self.pair.count(exercise)
            found = torch.autograd.grad(mean, parameters, retain_graph=True, materialize_grads=True)
            for number, each in enumerate(found):  # not in place: parameters may share a gradient
                product[number] = product[number] + each

        sweep = self.pair.gradient(self.teacher, exercise, before=along)
        self.pair.group.sum_(product)
        return sweep, product

    def _descend(self, exercise: Exercise, direction: list[Tensor]) -> None:
        """Add the teacher's gradient of the derivative of the student's loss along the direction."""
        student = self.pair.student
        for micro in self.pair.micros(exercise):
            sides = self._sides(micro, direction, hidden=student.needs_hidden)
            found = self.teacher.predictor.predict(micro.teacher, hidden=student.needs_hidden)
            (self._slope(found, sides, student).sum() / self.pair.count(exercise)).backward()

    def _slope(self, found: Predictions, sides: Sides[Predictions], learner: Learning) -> Tensor:
        """The derivative of the learner's loss of each row [B] by the student's weights along the direction, with gradient to
        the teacher, whose predictions are `found`."""
        of_teacher = learner is self.teacher
        above_B, below_B = (
            learner.loss(*((found, student) if of_teacher else (student, found)))[0] for student in (sides.above, sides.below)
        )
        return (above_B - below_B) * sides.scale

    def _weigh(self, exercise: Exercise, influence_B: Tensor) -> dict[str, float]:
        """The teacher's step on its loss and on the mean of each row's influence times its imitation loss."""
        weights_B = self.config.coefficient * normalised(influence_B, self.pair.group)
        sweep = self.pair.gradient(self.teacher, exercise, imitation_B=weights_B)
        return sweep.figures | self.teacher.step(sweep.gradient)

    def _tempered(self, weights_B: Tensor) -> Tensor:
        """Weights between 1 each (coefficient 0) and those of the influence (coefficient 1)."""
        share = min(1.0, self.config.coefficient)
        return torch.lerp(torch.ones_like(weights_B), weights_B, share)
