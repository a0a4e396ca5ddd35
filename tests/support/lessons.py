"""Small students and teachers in float64 on random features, for lessons whose gradients have closed forms."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from minidist.config.learner import OptimizerConfig
from minidist.config.terms import LossTerms
from minidist.learners.group import OneProcess
from minidist.losses.predictions import Predictions
from minidist.teaching.learning import Learning, Training
from minidist.teaching.pair import Pair
from minidist.types import Exercise, LabelledRow, TaskFacts

ROWS, FEATURES, CLASSES = 64, 5, 3
KD = {"kd": {"temperature": 1.0}}
CE = {"cross_entropy": {}}


class ToyPredictor:
    """A network on a table of random features: row i of a task reads line i of the table."""

    def __init__(self, seed: int, hidden: int = 6, classes: int = CLASSES, scale: float = 1.0) -> None:
        torch.manual_seed(seed)
        self.model: Any = nn.Sequential(nn.Linear(FEATURES, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(scale)
        self.table = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        self.task = TaskFacts("classes", tuple("abc"[:classes]))

    def predict(self, rows: Sequence[LabelledRow], *, hidden: bool = False) -> Predictions:
        logits = self.model(self.table[[row.index for row in rows]])
        labels = torch.tensor([int(row.label) for row in rows])
        return Predictions(logits, labels, torch.arange(len(rows)), len(rows))


def rows(indices: Sequence[int], labels: Sequence[int]) -> tuple[LabelledRow, ...]:
    return tuple(LabelledRow(index, np.zeros(1, np.int32), label) for index, label in zip(indices, labels, strict=True))


def exercise(seed: int = 0, *, step: int = 0, count: int = 8, held_out: int = 6) -> Exercise:
    """Random training rows with random labels, and other rows held out."""
    rng = np.random.default_rng([seed, step])
    drawn = rng.permutation(ROWS)[: count + held_out].tolist()
    labels = rng.integers(0, CLASSES, count + held_out).tolist()
    training = rows(drawn[:count], labels[:count])
    return Exercise(step, training, training, rows(drawn[count:], labels[count:]))


def learning(name: str, predictor: Any, loss: dict[str, Any] | None, **options: Any) -> Learning:
    """A model that learns by plain SGD, or as `optimizer` says."""
    terms = None if loss is None else TypeAdapter(LossTerms).validate_python(loss)
    optimizer = OptimizerConfig(**({"type": "sgd", "lr": 0.1, "grad_clip": None} | options.pop("optimizer", {})))
    training = Training(optimizer, 100, options.pop("dropout", False))
    return Learning(name, predictor, terms, training, group=OneProcess(), **options)


def toy_pair(
    seed: int = 0,
    *,
    student_loss: dict[str, Any] | None = None,
    teacher_loss: dict[str, Any] | None = None,
    micro_rows: int = 8,
    **options: Any,
) -> Pair:
    """A student of 6 units and a teacher of 9; `options` of `learning`, for both."""
    student = learning("student", ToyPredictor(seed), KD if student_loss is None else student_loss, **dict(options))
    teacher = learning("teacher", ToyPredictor(seed + 1000, 9, scale=2.0), teacher_loss, **dict(options))
    return Pair(student, teacher, micro_rows, OneProcess())


def weights(model: Learning) -> list[Tensor]:
    """Copies of a model's weights."""
    return [each.detach().clone() for each in model.parameters.values()]


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def close(left: Sequence[Tensor], right: Sequence[Tensor], tolerance: float = 1e-9) -> bool:
    """Whether tensors are equal up to a share of their norm."""
    difference = sum(float((a - b).square().sum()) for a, b in zip(left, right, strict=True)) ** 0.5
    return difference <= tolerance * sum(float(b.square().sum()) for b in right) ** 0.5


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector."""
    return torch.cat([each.reshape(-1) for each in tensors])


def exact_products(loss_B: Tensor, parameters: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
    """<grad l_i, g> by one backward pass a row, [B]."""
    found = []
    for loss in loss_B:
        gradient = torch.autograd.grad(loss, list(parameters), retain_graph=True)
        found.append(sum((a * b).sum() for a, b in zip(gradient, direction, strict=True)))
    return torch.stack(found)  # type: ignore[arg-type]
