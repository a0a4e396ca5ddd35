"""Student and teacher, and a pass of one of them over a step's rows while it imitates the other."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from minidist.learners.group import Group
from minidist.losses.predictions import Predictions
from minidist.teaching.learning import Learning, Rows
from minidist.types import Exercise


class Tally:
    """Figures of a pass: the mean of each over the rows of all ranks, which hold equally many."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._rows = 0

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Figures of some rows, [B] each; the names are the same in every pass, and on every rank."""
        for name, values_B in losses.items():
            self._sums[name] += float(values_B.detach().double().sum())
        self._rows += next(len(values_B) for values_B in losses.values())

    def over(self, group: Group) -> dict[str, float]:
        """The means, over all ranks."""
        names = sorted(self._sums)
        sums = group.total(np.array([*(self._sums[name] for name in names), self._rows]))
        return dict(zip(names, (sums[:-1] / sums[-1]).tolist(), strict=True))


@dataclass(frozen=True)
class Pair:
    """Who learns, and how a step's rows are divided.

    Args:
        student: the model that a run is for.
        teacher: the model that it imitates; a model without a loss does not learn. None: there is none.
        micro_rows: most rows of one forward pass.
        group: the ranks that share each step's rows.
    """

    student: Learning
    teacher: Learning | None
    micro_rows: int
    group: Group

    @property
    def models(self) -> dict[str, Learning]:
        """Both, by their names."""
        return {each.name: each for each in (self.student, self.teacher) if each is not None}

    def gradient(
        self,
        learner: Learning,
        exercise: Exercise,
        weights_B: Tensor | None = None,
        *,
        imitation_B: Tensor | None = None,
        before: Callable[[Predictions, "Micro"], None] = lambda *_: None,
    ) -> "Sweep":
        """The gradient of the learner's mean loss over the rows of all ranks, and its figures; no weights move.

        weights_B: weight of each of this rank's rows in the mean, [B]; None: 1 each. imitation_B: further weight of the terms
        that imitate alone, [B]; None: 0 each. before: called with the learner's predictions of some rows, before their graph
        is freed.
        """
        tally = Tally()

        def accumulate() -> None:
            with learner.training(exercise.step):
                for micro in self.micros(exercise):
                    own, other = self.predictions(learner, micro)
                    loss_B, terms = learner.loss(own, other)
                    tally.add({"loss": loss_B} | terms)
                    weighted_B = loss_B if weights_B is None else loss_B * weights_B[micro.slice].to(loss_B)
                    if imitation_B is not None:
                        imitating_B, _ = learner.loss(own, other, imitation=True)
                        weighted_B = weighted_B + imitating_B * imitation_B[micro.slice].to(loss_B)
                    before(own, micro)
                    (weighted_B.sum() / self.count(exercise)).backward()

        gradient = learner.gradient(accumulate)
        figures = {f"{learner.name}/{name}": value for name, value in tally.over(self.group).items()}
        return Sweep(gradient, figures)

    def predictions(self, learner: Learning, micro: "Micro") -> tuple[Predictions, Predictions | None]:
        """The learner's predictions, with gradient, and the other's, without, in evaluation mode."""
        imitated, rows = self.imitated(learner, micro), micro.student if learner is self.student else micro.teacher
        return learner.predictor.predict(rows, hidden=learner.needs_hidden), imitated

    def imitated(self, learner: Learning, micro: "Micro") -> Predictions | None:
        """The predictions that the learner imitates, without gradient, in evaluation mode; None where it imitates none."""
        other, rows = (self.teacher, micro.teacher) if learner is self.student else (self.student, micro.student)
        return other.predict(rows, hidden=learner.needs_hidden) if other is not None and learner.needs_other else None

    def loss_through(self, micro: "Micro") -> tuple[Tensor, dict[str, Tensor]]:
        """The student's loss of each row [B] with gradients to both models, in evaluation mode."""
        assert self.teacher is not None
        hidden = self.student.needs_hidden
        own = self.student.predictor.predict(micro.student, hidden=hidden)
        return self.student.loss(own, self.teacher.predictor.predict(micro.teacher, hidden=hidden))

    def micros(self, exercise: Exercise) -> Iterator["Micro"]:
        """The rows of this rank, `micro_rows` at a time."""
        for start in range(0, len(exercise.student), self.micro_rows):
            part = slice(start, start + self.micro_rows)
            yield Micro(part, exercise.student[part], exercise.teacher[part])

    def count(self, exercise: Exercise) -> int:
        """Rows of all ranks."""
        return len(exercise.student) * self.group.size


@dataclass(frozen=True)
class Micro:
    """Rows of one forward pass: their positions among the rank's rows, and the rows as student and teacher read them."""

    slice: slice
    student: Rows
    teacher: Rows


@dataclass(frozen=True)
class Sweep:
    """The gradient of a model's loss over the rows of all ranks, parameter by parameter, and its figures."""

    gradient: list[Tensor]
    figures: dict[str, float]


def mean_loss(learner: Learning, rows: Rows, pair: Pair, loss: Callable[[Predictions], Tensor]) -> tuple[list[Tensor], float]:
    """Gradient and value of the mean of `loss` over rows of all ranks, by the learner in evaluation mode.

    loss: predictions to the loss of each row, [B].
    """
    tally = Tally()

    def accumulate() -> None:
        for start in range(0, len(rows), pair.micro_rows):
            loss_B = loss(learner.predictor.predict(rows[start : start + pair.micro_rows]))
            tally.add({"loss": loss_B})
            (loss_B.sum() / (len(rows) * pair.group.size)).backward()

    return learner.gradient(accumulate), tally.over(pair.group)["loss"]
