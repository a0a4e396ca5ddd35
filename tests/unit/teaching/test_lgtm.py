"""LGTM: the trial step leaves nothing behind, each form of influence is its formula, and the direction helps the student."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from minidist.config.lessons import LGTMConfig
from minidist.losses.imitation import label_loss
from minidist.teaching.lgtm import LGTM
from minidist.teaching.online import MutualLesson
from minidist.teaching.pair import Pair
from minidist.types import Exercise
from tests.support.lessons import CE, KD, close, exact_products, exercise, rows, same, toy_pair, weights

BOTH = {"cross_entropy": {"weight": 0.6}, "kd": {"weight": 0.4}}
ADAMW = {"type": "adamw", "lr": 0.05, "grad_clip": 1.0}


def lgtm(pair: Pair, **options: Any) -> LGTM:
    return LGTM(pair, LGTMConfig(**options))


def held_out_loss(pair: Pair, drawn: Exercise) -> Tensor:
    found = pair.student.predictor.predict(drawn.feedback)
    return label_loss(found).mean()


def exact_direction(pair: Pair, drawn: Exercise, rate: float = 0.1) -> list[Tensor]:
    """The gradient of the held-out loss after a step of plain SGD."""
    trial = deepcopy(pair)
    gradient = trial.gradient(trial.student, drawn).gradient
    with torch.no_grad():
        for parameter, each in zip(trial.student.parameters.values(), gradient, strict=True):
            parameter.sub_(rate * each)
    return list(torch.autograd.grad(held_out_loss(trial, drawn), list(trial.student.parameters.values())))


def exact_product(pair: Pair, drawn: Exercise, direction: list[Tensor], *, of_student: bool = False) -> list[Tensor]:
    """h: the derivative by the teacher's weights of <gradient of a KL by the student's weights, direction>."""
    assert pair.teacher is not None
    q, p = (model.predictor.predict(drawn.student).logprobs_NC() for model in (pair.student, pair.teacher))
    loss = ((p.exp() * (p - q)) if of_student else (q.exp() * (q - p))).sum(-1).mean()
    by_student = torch.autograd.grad(loss, list(pair.student.parameters.values()), create_graph=True)
    product = sum((a * b).sum() for a, b in zip(by_student, direction, strict=True))
    return list(torch.autograd.grad(product, list(pair.teacher.parameters.values())))  # type: ignore[arg-type]


@pytest.mark.parametrize("influence", ["hvp", "explicit", "reweight"])
def test_coefficient_zero_is_online_distillation_bit_for_bit(influence: str) -> None:
    pairs = [toy_pair(teacher_loss=BOTH, optimizer=ADAMW) for _ in range(2)]
    lessons = [lgtm(pairs[0], influence=influence, coefficient=0), MutualLesson(pairs[1], LGTMConfig())]
    for step in range(4):
        for lesson in lessons:
            lesson.teach(exercise(step=step))
    for name in ("student", "teacher"):
        assert same(*(weights(pair.models[name]) for pair in pairs))


def test_the_trial_step_leaves_weights_and_optimizer_as_they_were() -> None:
    pair = toy_pair(teacher_loss=BOTH, optimizer=ADAMW)
    lesson = lgtm(pair)
    lesson.teach(exercise())  # the optimizer has moments
    before, state = weights(pair.student), deepcopy(pair.student._optimizer.state_dict())  # type: ignore[union-attr]
    lesson._direction(exercise(step=1))
    after = pair.student._optimizer.state_dict()  # type: ignore[union-attr]
    assert same(weights(pair.student), before) and pair.student.taken == 1
    for key, moments in state["state"].items():
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(after["state"][key][name])) for name, value in moments.items()
        )


@pytest.mark.parametrize("through", ["teacher_loss", "loss"])
def test_hvp_steps_along_the_gradient_minus_h(through: str) -> None:
    pair, drawn = toy_pair(teacher_loss={"kd": {}}), exercise()
    assert pair.teacher is not None
    h = exact_product(pair, drawn, exact_direction(pair, drawn), of_student=through == "loss")
    gradient, before = pair.gradient(pair.teacher, drawn).gradient, weights(pair.teacher)
    lesson = lgtm(pair, coefficient=0.7, relative=False, through=through, radius=1e-4)
    metrics = lesson.teach(drawn).metrics
    moved = [(a - b) / 0.1 for a, b in zip(before, weights(pair.teacher), strict=True)]
    assert close(moved, [g - 0.7 * each for g, each in zip(gradient, h, strict=True)], 1e-6)
    assert metrics["influence/h_norm"] > 0 and metrics["influence/feedback_loss"] > 0


def test_relative_scales_h_to_the_gradient() -> None:
    pair, drawn = toy_pair(teacher_loss=BOTH), exercise()
    assert pair.teacher is not None
    gradient, before = pair.gradient(pair.teacher, drawn).gradient, weights(pair.teacher)
    lgtm(pair, coefficient=0.5).teach(drawn)
    added = [(a - b) / 0.1 - g for a, b, g in zip(before, weights(pair.teacher), gradient, strict=True)]
    sizes = [sum(float(each.square().sum()) for each in tensors) ** 0.5 for tensors in (added, gradient)]
    assert sizes[0] == pytest.approx(0.5 * sizes[1], rel=1e-6)


def test_explicit_adds_each_rows_influence_times_its_imitation() -> None:
    pair, drawn = toy_pair(teacher_loss=BOTH), exercise()
    assert pair.teacher is not None
    loss_B, _ = pair.student.loss(*pair.predictions(pair.student, next(iter(pair.micros(drawn)))))
    w_B = exact_products(loss_B, list(pair.student.parameters.values()), exact_direction(pair, drawn))
    own, other = pair.predictions(pair.teacher, next(iter(pair.micros(drawn))))
    assert other is not None
    q, p = other.logprobs_NC(), own.logprobs_NC()
    kl_B = (q.exp() * (q - p)).sum(-1)
    labelled = 0.6 * label_loss(own).mean() + 0.4 * kl_B.mean()
    weighted = labelled + 0.8 * (w_B / w_B.abs().mean() * 0.4 * kl_B).mean()
    expected, before = torch.autograd.grad(weighted, list(pair.teacher.parameters.values())), weights(pair.teacher)
    outcome = lgtm(pair, influence="explicit", coefficient=0.8, radius=1e-4).teach(drawn)
    moved = [(a - b) / 0.1 for a, b in zip(before, weights(pair.teacher), strict=True)]
    assert close(moved, expected, 1e-6)
    assert outcome.influence is not None and torch.allclose(outcome.influence, w_B, rtol=1e-5)


def test_reweight_weighs_the_students_rows_by_their_positive_influence() -> None:
    pair, drawn = toy_pair(2, teacher_loss=BOTH, student_loss=KD), exercise(2)
    twin = deepcopy(pair)
    outcome = lgtm(pair, influence="reweight", radius=1e-4).teach(drawn)
    assert outcome.influence is not None and (outcome.influence < 0).any() and (outcome.influence > 0).any()
    assert twin.teacher is not None
    twin.teacher.step(twin.gradient(twin.teacher, drawn).gradient)
    loss_B, _ = twin.student.loss(*twin.predictions(twin.student, next(iter(twin.micros(drawn)))))
    w_B = outcome.influence.clamp(min=0)
    expected = torch.autograd.grad((w_B / w_B.mean() * loss_B).mean(), list(twin.student.parameters.values()))
    moved = [(a - b) / 0.1 for a, b in zip(weights(twin.student), weights(pair.student), strict=True)]
    assert close(moved, expected, 1e-6)


def next_held_out_loss(pair: Pair, drawn: Exercise) -> float:
    """The student's held-out loss after its next step of plain SGD under the teacher as it is."""
    trial = deepcopy(pair)
    trial.student.step(trial.gradient(trial.student, drawn).gradient)
    return held_out_loss(trial, drawn).item()


def test_the_hvp_direction_lowers_the_students_next_held_out_loss_and_the_explicit_one_raises_it() -> None:
    lower = higher = 0
    for seed in range(40):
        pair, drawn = toy_pair(seed, teacher_loss={"kd": {}}), exercise(seed)
        assert pair.teacher is not None
        before = next_held_out_loss(pair, drawn)
        direction = exact_direction(pair, drawn)
        by_hvp, by_rows = deepcopy(pair), deepcopy(pair)
        h = exact_product(pair, drawn, direction)
        w_B = lgtm(pair, radius=1e-4)._influence(drawn, direction)
        rows_gradient = pair.gradient(pair.teacher, drawn, w_B).gradient
        for trial, step in ((by_hvp, h), (by_rows, [-each for each in rows_gradient])):
            assert trial.teacher is not None
            size = sum(float(each.square().sum()) for each in step) ** 0.5
            with torch.no_grad():
                for parameter, each in zip(trial.teacher.parameters.values(), step, strict=True):
                    parameter.add_(each, alpha=1e-3 / size)
        lower += next_held_out_loss(by_hvp, drawn) < before
        higher += next_held_out_loss(by_rows, drawn) > before
    assert lower == 40 and higher >= 32, (lower, higher)


def test_a_duplicate_of_a_held_out_row_helps_and_a_mislabelled_one_harms() -> None:
    duplicate = mislabelled = 0
    for seed in range(40):
        pair, drawn = toy_pair(seed, student_loss=CE, teacher_loss=CE), exercise(seed, held_out=1)
        held = drawn.feedback[0]
        wrong = rows([held.index], [(int(held.label) + 1) % 3])
        probe = Exercise(0, (held, *wrong), (held, *wrong), drawn.feedback)
        found = lgtm(pair, radius=1e-3).influence(probe)
        duplicate += bool(found[0] > 0)
        mislabelled += bool(found[1] < 0)
    assert duplicate == 40 and mislabelled >= 36, (duplicate, mislabelled)
