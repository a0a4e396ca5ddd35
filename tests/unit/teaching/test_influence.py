"""Influence and mixed second derivatives by central differences, against exact derivatives."""

import numpy as np
import pytest
import torch

from minidist.errors import DivergedError
from minidist.learners.group import OneProcess
from minidist.teaching.influence import central_difference, moved, norm, normalised, row_weights
from minidist.teaching.pair import Pair
from minidist.types import Exercise
from tests.support.lessons import close, exact_products, exercise, flat, same, toy_pair, weights

ALONE = OneProcess()


def random_like(parameters: list[torch.Tensor], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in parameters]


def losses(pair: Pair, drawn: Exercise) -> torch.Tensor:
    """The student's loss of each row, [B]."""
    with torch.no_grad():
        return pair.student.loss(*pair.predictions(pair.student, next(iter(pair.micros(drawn)))))[0]


def test_influence_is_the_product_of_gradients_with_an_error_of_second_order() -> None:
    pair, drawn = toy_pair(), exercise()
    parameters = list(pair.student.parameters.values())
    direction = random_like(parameters)
    loss_B, _ = pair.student.loss(*pair.predictions(pair.student, next(iter(pair.micros(drawn)))))
    exact_B = exact_products(loss_B, parameters, direction)
    radii, errors = [0.3, 0.1, 0.03, 0.01], []
    for radius in radii:
        [found_B] = central_difference(lambda: [losses(pair, drawn)], parameters, direction, radius=radius)
        errors.append(float((found_B - exact_B).abs().max()))
    slopes = np.diff(np.log(errors)) / np.diff(np.log(radii))
    assert np.allclose(slopes, 2, atol=0.1), slopes
    assert errors[-1] < 1e-4 * float(exact_B.abs().max())


def test_the_sum_over_rows_is_the_directional_derivative_of_the_sum() -> None:
    pair, drawn = toy_pair(3), exercise(3)
    parameters = list(pair.student.parameters.values())
    direction = random_like(parameters, 5)
    [found_B] = central_difference(lambda: [losses(pair, drawn)], parameters, direction, radius=1e-4)
    gradient = pair.gradient(pair.student, drawn).gradient
    derivative = len(drawn.student) * (flat(gradient) * flat(direction)).sum()
    assert float(found_B.sum()) == pytest.approx(float(derivative), rel=1e-6)


def test_the_mixed_product_is_that_of_a_double_backward_pass() -> None:
    pair, drawn = toy_pair(1, teacher_loss={"kd": {}}), exercise(1)
    assert pair.teacher is not None
    ours, theirs = (list(model.parameters.values()) for model in (pair.student, pair.teacher))
    direction = random_like(ours, 2)
    found = central_difference(lambda: pair.gradient(pair.teacher, drawn).gradient, ours, direction, radius=1e-4)
    # KL(student || teacher), the teacher's loss, with gradients to both.
    q, p = (model.predictor.predict(drawn.student).logprobs_NC() for model in (pair.student, pair.teacher))
    loss = (q.exp() * (q - p)).sum(-1).mean()
    by_student = torch.autograd.grad(loss, ours, create_graph=True)
    product = sum((a * b).sum() for a, b in zip(by_student, direction, strict=True))
    assert close(found, torch.autograd.grad(product, theirs), 1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("fails", [False, True])
def test_parameters_are_those_of_before_bit_for_bit(fails: bool) -> None:
    pair = toy_pair(2)
    parameters, before = list(pair.student.parameters.values()), weights(pair.student)
    try:
        with moved(parameters, random_like(parameters), 0.1234567):
            assert not same(parameters, before)
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert same(parameters, before)


def test_a_direction_of_zero_gives_zeros_and_moves_nothing() -> None:
    pair, drawn = toy_pair(), exercise()
    parameters = list(pair.student.parameters.values())
    [found_B] = central_difference(lambda: [losses(pair, drawn)], parameters, [0 * each for each in parameters], radius=0.01)
    assert found_B.shape == (8,) and not found_B.any()


def test_a_direction_that_is_not_finite_is_refused_and_moves_nothing() -> None:
    pair = toy_pair()
    parameters, before = list(pair.student.parameters.values()), weights(pair.student)
    with pytest.raises(DivergedError, match="held-out loss is not finite"):
        central_difference(lambda: [parameters[0].sum()], parameters, [each * float("nan") for each in parameters], radius=0.01)
    assert same(weights(pair.student), before)


def test_norms_and_weights() -> None:
    assert norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == 5
    influence = torch.tensor([2.0, -1.0, 3.0, 0.0])
    assert normalised(influence, ALONE).tolist() == pytest.approx([4 / 3, -2 / 3, 2, 0])
    assert row_weights(influence, ALONE).tolist() == pytest.approx([1.6, 0, 2.4, 0])
    assert row_weights(-influence.abs(), ALONE).tolist() == [1, 1, 1, 1]
    assert normalised(0 * influence, ALONE).tolist() == [0, 0, 0, 0]
