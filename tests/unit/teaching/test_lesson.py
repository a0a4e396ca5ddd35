"""Lessons without a learning teacher, online distillation in each order, and phases."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from minidist.config.lessons import OnlineConfig
from minidist.errors import DivergedError
from minidist.losses.imitation import label_loss
from minidist.teaching.lesson import Lesson, Phase, PhasedLesson
from minidist.teaching.online import Online
from minidist.teaching.pair import Pair
from tests.support.lessons import CE, ToyPredictor, close, exercise, learning, same, toy_pair, weights

BOTH = {"cross_entropy": {"weight": 0.6}, "kd": {"weight": 0.4, "temperature": 2.0, "squared_temperature": True}}


@pytest.mark.parametrize("micro_rows", [1, 3, 8])
def test_micro_batches_add_up_to_the_gradient_of_the_mean(micro_rows: int) -> None:
    pair, drawn = toy_pair(student_loss=BOTH, micro_rows=micro_rows), exercise()
    sweep = pair.gradient(pair.student, drawn)
    assert pair.teacher is not None
    own, other = (model.predictor.predict(drawn.student) for model in (pair.student, pair.teacher))
    p, q = other.logprobs_NC(2.0).detach(), own.logprobs_NC(2.0)
    loss_B = 0.6 * label_loss(own) + 0.4 * 4 * (p.exp() * (p - q)).sum(-1)
    assert close(sweep.gradient, torch.autograd.grad(loss_B.mean(), list(pair.student.parameters.values())))
    assert sweep.figures["student/loss"] == pytest.approx(loss_B.mean().item())
    assert sweep.figures["student/cross_entropy"] == pytest.approx(label_loss(own).mean().item())
    assert same([each for each in pair.student.parameters.values() if each.grad is not None], [])


def test_weights_of_rows_multiply_their_losses() -> None:
    pair, drawn = toy_pair(student_loss=CE, micro_rows=3), exercise()
    weights_B = torch.arange(8, dtype=torch.float64)
    loss_B = label_loss(pair.student.predictor.predict(drawn.student))
    expected = torch.autograd.grad((weights_B * loss_B).mean(), list(pair.student.parameters.values()))
    assert close(pair.gradient(pair.student, drawn, weights_B).gradient, expected)


def test_a_frozen_teacher_stays_and_the_student_steps() -> None:
    pair, drawn = toy_pair(student_loss=BOTH), exercise()
    assert pair.teacher is not None
    before = weights(pair.student), weights(pair.teacher)
    gradient = pair.gradient(pair.student, drawn).gradient
    metrics = Lesson(pair).teach(drawn).metrics
    assert same(weights(pair.teacher), before[1]) and not pair.teacher.learns
    assert close([(a - b) / 0.1 for a, b in zip(before[0], weights(pair.student), strict=True)], gradient)
    assert metrics["student/lr"] == 0.1 and pair.student.taken == 1


def step_by_hand(pair: Pair, name: str, drawn: Any) -> None:
    model = pair.models[name]
    model.step(pair.gradient(model, drawn).gradient)


@pytest.mark.parametrize("order", ["teacher_first", "student_first", "together"])
def test_online_distillation_in_each_order(order: Any) -> None:
    pair, drawn = toy_pair(student_loss=BOTH, teacher_loss=BOTH), exercise()
    twin = deepcopy(pair)
    Online(pair, OnlineConfig(order=order)).teach(drawn)
    if order == "together":
        gradients = {name: twin.gradient(model, drawn).gradient for name, model in twin.models.items()}
        for name, gradient in gradients.items():
            twin.models[name].step(gradient)
    else:
        for name in ("teacher", "student") if order == "teacher_first" else ("student", "teacher"):
            step_by_hand(twin, name, drawn)
    for name in ("student", "teacher"):
        assert same(weights(pair.models[name]), weights(twin.models[name]))


def test_the_three_orders_differ() -> None:
    found = []
    for order in ("teacher_first", "student_first", "together"):
        pair = toy_pair(student_loss=BOTH, teacher_loss=BOTH)
        Online(pair, OnlineConfig(order=order)).teach(exercise())  # type: ignore[arg-type]
        found.append([*weights(pair.student), *weights(pair.models["teacher"])])
    assert not same(found[0], found[1]) and not same(found[0], found[2]) and not same(found[1], found[2])


def test_a_teacher_without_imitation_is_fine_tuned() -> None:
    pair, drawn = toy_pair(student_loss=BOTH, teacher_loss=CE), exercise()
    alone = learning("student", ToyPredictor(1000, 9, scale=2.0), CE)
    Online(pair, OnlineConfig()).teach(drawn)
    Lesson(Pair(alone, None, 8, pair.group)).teach(drawn)
    assert same(weights(pair.models["teacher"]), weights(alone))


def test_phases_follow_one_another_and_share_what_they_share() -> None:
    first, second = toy_pair(0, student_loss=BOTH), toy_pair(5, student_loss=BOTH)
    pairs = [Pair(first.student, each.teacher, 8, first.group) for each in (first, second)]
    assert second.teacher is not None
    second.teacher.name = "teacher_1"
    lesson = PhasedLesson(pairs[1], (Phase(2, pairs[0]), Phase(4, pairs[1])))
    assert set(lesson.models) == {"student", "teacher", "teacher_1"}
    twin = deepcopy(pairs)
    twin[1] = Pair(twin[0].student, twin[1].teacher, 8, first.group)
    for step in range(4):
        metrics = lesson.teach(exercise(step=step)).metrics
        assert metrics["lesson/phase"] == (0 if step < 2 else 1)
        Lesson(twin[step // 2]).teach(exercise(step=step))
    assert same(weights(first.student), weights(twin[0].student))


def test_an_assistant_as_a_teacher_reads_the_students_rows() -> None:
    pair, drawn = toy_pair(student_loss=BOTH), exercise()
    other = exercise(9)
    mixed = type(drawn)(0, drawn.student, other.student, ())
    shared = deepcopy(pair)
    PhasedLesson(shared, (Phase(1, shared, shared_rows=True),)).teach(mixed)
    Lesson(pair).teach(drawn)
    assert same(weights(shared.student), weights(pair.student))


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    pair, drawn = toy_pair(student_loss=CE), exercise()
    before = weights(pair.student)
    pair.student.predictor.table[drawn.student[0].index] = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(DivergedError, match=r"gradient of 0\.weight of the student is not finite; nothing was updated"):
        Lesson(pair).teach(drawn)
    assert same(weights(pair.student), before) and pair.student.taken == 0
    assert all(each.grad is None for each in pair.student.parameters.values())


def test_dropout_is_a_function_of_the_step() -> None:
    def trained(dropout: bool, steps: tuple[int, ...]) -> Any:
        predictor = ToyPredictor(0)
        predictor.model.append(torch.nn.Dropout(0.5))
        model = learning("student", predictor, CE, dropout=dropout)
        for step in steps:
            Lesson(Pair(model, None, 8, toy_pair().group)).teach(exercise(step=step))
        assert not predictor.model.training
        return weights(model)

    assert same(trained(True, (0, 1)), trained(True, (0, 1)))
    assert not same(trained(True, (0, 1)), trained(False, (0, 1)))


def test_a_lesson_that_measures_no_influence_says_so() -> None:
    pair = toy_pair(teacher_loss=BOTH)
    with pytest.raises(AssertionError, match="Online measures no influence"):
        Online(pair, OnlineConfig()).influence(exercise())
