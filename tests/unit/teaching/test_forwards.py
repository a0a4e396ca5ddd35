"""How often the models of a step predict its rows, and with which dropout."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minidist.config.lessons import LGTMConfig, OnlineConfig
from minidist.losses.predictions import Predictions
from minidist.teaching.lesson import Lesson
from minidist.teaching.lgtm import LGTM
from minidist.teaching.online import Online
from minidist.teaching.pair import Pair
from minidist.types import Exercise, LabelledRow
from tests.support.lessons import close, exercise, toy_pair

BOTH: dict[str, Any] = {"cross_entropy": {"weight": 0.6}, "kd": {"weight": 0.4}}


def count_forwards(lesson: Lesson, drawn: Exercise) -> dict[str, int]:
    """Forward passes over the training rows in one step: `teacher`, `student`, and those with a graph."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if len(inputs[0]) == len(drawn.student):
                counts[name] += 1
                counts[f"{name} with a graph"] += output.requires_grad

        return hook

    for name, model in lesson.pair.models.items():
        model.predictor.model.register_forward_hook(counted(name))
    lesson.teach(drawn)
    return dict(counts)


@pytest.mark.parametrize(
    ("lesson", "teacher", "with_graph", "student"),
    [
        # its own loss; then the student imitates its new weights
        (lambda pair: Online(pair, OnlineConfig()), 2, 1, 2),
        (lambda pair: Online(pair, OnlineConfig(order="student_first")), 2, 1, 2),
        # each once for its own loss and once to be imitated
        (lambda pair: Online(pair, OnlineConfig(order="together")), 2, 1, 2),
        # the trial step, its own loss with h, and the student's step; the student: trial, imitated, two sides, step
        (lambda pair: LGTM(pair, LGTMConfig(influence="hvp")), 3, 1, 5),
        # as hvp, and h apart: it is that of the student's loss, without dropout
        (lambda pair: LGTM(pair, LGTMConfig(influence="hvp", through="loss")), 4, 2, 5),
        # the trial step, the influence, its own loss with the weighted one, and the student's step
        (lambda pair: LGTM(pair, LGTMConfig(influence="explicit")), 4, 1, 5),
        # the trial step, the influence, its own loss, and the student's step
        (lambda pair: LGTM(pair, LGTMConfig(influence="reweight")), 4, 1, 5),
    ],
    ids=["teacher_first", "student_first", "together", "hvp", "hvp of the loss", "explicit", "reweight"],
)
def test_a_step_takes_as_many_forward_passes_as_it_must(lesson: Any, teacher: int, with_graph: int, student: int) -> None:
    pair, drawn = toy_pair(student_loss=BOTH, teacher_loss=BOTH), exercise()
    found = count_forwards(lesson(pair), drawn)
    assert (found["teacher"], found["teacher with a graph"], found["student"]) == (teacher, with_graph, student)


class Masks(nn.Module):
    """Dropout that keeps its masks."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        self.drawn.append((torch.rand_like(values) < 0.5).to(values) / 0.5)
        return values * self.drawn[-1]


def with_dropout(micro_rows: int = 8) -> tuple[Pair, Masks]:
    """A pair whose teacher has a layer of dropout."""
    pair = toy_pair(student_loss=BOTH, teacher_loss={"kd": {}}, micro_rows=micro_rows, dropout=True)
    assert pair.teacher is not None
    masks = Masks()
    pair.teacher.predictor.model.insert(2, masks.eval())
    return pair, masks


def masked_predictions(pair: Pair, rows: Sequence[LabelledRow], mask: Tensor) -> Predictions:
    """The teacher's predictions under a mask."""
    assert pair.teacher is not None
    first, nonlinearity, _, last = pair.teacher.predictor.model
    logits = last(nonlinearity(first(pair.teacher.predictor.table[[row.index for row in rows]])) * mask)  # type: ignore[attr-defined]
    return Predictions(logits, torch.tensor([int(row.label) for row in rows]), torch.arange(len(rows)), len(rows))


@pytest.mark.parametrize("micro_rows", [8, 3])
def test_gradient_and_h_with_dropout_are_the_double_backward_ones_under_the_same_masks(micro_rows: int) -> None:
    pair, masks = with_dropout(micro_rows)
    drawn, direction = exercise(), [torch.randn_like(each) for each in pair.student.parameters.values()]
    sweep, h = LGTM(pair, LGTMConfig(radius=1e-4))._gradients(drawn, direction)
    q = pair.student.predictor.predict(drawn.student).logprobs_NC()
    p = masked_predictions(pair, drawn.student, torch.cat(masks.drawn)).logprobs_NC()
    loss, of_teacher = (q.exp() * (q - p)).sum(-1).mean(), list(pair.models["teacher"].parameters.values())
    assert close(sweep.gradient, torch.autograd.grad(loss, of_teacher, retain_graph=True), 1e-9)
    by_student = torch.autograd.grad(loss, list(pair.student.parameters.values()), create_graph=True)
    product = sum((a * b).sum() for a, b in zip(by_student, direction, strict=True))
    assert close(h, torch.autograd.grad(product, of_teacher), 1e-6)  # type: ignore[arg-type]
