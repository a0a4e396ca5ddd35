"""MetaDistil's second-order gradient against finite differences of the held-out loss, and against LGTM's product."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from minidist.config.lessons import MetaConfig
from minidist.losses.imitation import label_loss
from minidist.teaching.meta import Meta
from minidist.teaching.pair import Pair
from minidist.types import Exercise
from tests.support.lessons import close, exercise, flat, same, toy_pair, weights
from tests.unit.teaching.test_lgtm import exact_direction, exact_product

LOSS = {"cross_entropy": {"weight": 0.5}, "kd": {"weight": 0.5, "temperature": 2.0}}


def meta(pair: Pair, **options: Any) -> Meta:
    return Meta(pair, MetaConfig(inner_rate=0.1, **options))


def quiz_loss(pair: Pair, drawn: Exercise, rate: float) -> float:
    """The student's held-out loss after a trial step of plain SGD."""
    trial = deepcopy(pair)
    gradient = trial.gradient(trial.student, drawn).gradient
    with torch.no_grad():
        for parameter, each in zip(trial.student.parameters.values(), gradient, strict=True):
            parameter.sub_(rate * each)
    return label_loss(trial.student.predictor.predict(drawn.feedback)).mean().item()


@pytest.mark.parametrize("micro_rows", [8, 3])
def test_the_gradient_is_that_of_the_held_out_loss_by_the_teachers_weights(micro_rows: int) -> None:
    pair, drawn = toy_pair(student_loss=LOSS, teacher_loss={}, micro_rows=micro_rows), exercise()
    assert pair.teacher is not None
    gradient, metrics = meta(pair).gradient(drawn)
    assert metrics["meta/feedback_loss"] == pytest.approx(quiz_loss(pair, drawn, 0.1))
    step, found = 1e-5, []
    for parameter in pair.teacher.parameters.values():
        for index in range(0, parameter.numel(), 7):
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * step
                losses.append(quiz_loss(pair, drawn, 0.1))
                with torch.no_grad():
                    parameter.view(-1)[index] -= sign * step
            found.append((losses[0] - losses[1]) / (2 * step))
    exact = torch.cat([each.reshape(-1)[::7] for each in gradient])
    assert torch.allclose(exact, torch.tensor(found, dtype=torch.float64), rtol=1e-3, atol=1e-9)


def test_it_is_minus_the_inner_rate_times_the_mixed_product() -> None:
    pair, drawn = toy_pair(teacher_loss={}), exercise()
    gradient, _ = meta(pair).gradient(drawn)
    h = exact_product(pair, drawn, exact_direction(pair, drawn), of_student=True)
    assert close(gradient, [-0.1 * each for each in h])
    assert float(flat(h).norm()) > 1e-6


def test_the_trial_changes_nothing_and_the_teacher_moves_before_the_student() -> None:
    pair, drawn = toy_pair(teacher_loss={}), exercise()
    assert pair.teacher is not None
    twin, before = deepcopy(pair), weights(pair.student)
    lesson = meta(pair)
    gradient, _ = lesson.gradient(drawn)
    assert same(weights(pair.student), before)
    lesson.teach(drawn)
    assert twin.teacher is not None
    twin.teacher.step(gradient)
    assert same(weights(pair.teacher), weights(twin.teacher))
    twin.student.step(twin.gradient(twin.student, drawn).gradient)  # under the new teacher
    assert same(weights(pair.student), weights(twin.student))


def test_terms_of_the_teachers_own_are_added() -> None:
    pair, drawn = toy_pair(teacher_loss={"cross_entropy": {"weight": 0.3}}), exercise()
    assert pair.teacher is not None
    lesson = Meta(pair, MetaConfig.model_validate({"inner_rate": 0.1, "loss": {"cross_entropy": {"weight": 0.3}}}))
    gradient, before = lesson.gradient(drawn)[0], weights(pair.teacher)
    labelled = pair.gradient(pair.teacher, drawn).gradient
    lesson.teach(drawn)
    moved = [(a - b) / 0.1 for a, b in zip(before, weights(pair.teacher), strict=True)]
    assert close(moved, [a + b for a, b in zip(gradient, labelled, strict=True)])
