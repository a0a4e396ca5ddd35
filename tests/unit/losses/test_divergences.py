"""Divergences: zero when equal, never negative, values and gradients by hand, and their limits."""

import doctest
import math

import pytest
import torch

import minidist.losses.divergences as module
from minidist.losses import forward_kl, jeffreys, reverse_kl, total_variation
from minidist.losses.divergences import expected_log_ratio
from minidist.losses.targets import Divergence
from tests.support.divergences import INF, random_logits, random_tables

BOTH = pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
STUDENT = torch.tensor([[0.5, 0.4, 0.1]], dtype=torch.float64).log()
TEACHER = torch.tensor([[0.9, 0.05, 0.05]], dtype=torch.float64).log()


@BOTH
def test_a_kl_is_zero_when_equal(divergence: Divergence) -> None:
    logits, _ = random_logits()
    table = logits.log_softmax(-1)
    assert divergence(table, table).abs().max() < 1e-12


@BOTH
def test_a_kl_is_never_negative(divergence: Divergence) -> None:
    student, teacher = random_logits(rows=500)
    values = divergence(student.log_softmax(-1), teacher.log_softmax(-1))
    assert values.shape == (500,)
    assert (values > 0).all()


def test_kls_have_their_values_by_hand() -> None:
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.4 * math.log(0.4 / 0.05) + 0.1 * math.log(0.1 / 0.05)
    forward = 0.9 * math.log(0.9 / 0.5) + 0.05 * math.log(0.05 / 0.4) + 0.05 * math.log(0.05 / 0.1)
    assert (round(reverse, 5), round(forward, 5)) == (0.60720, 0.39038)
    assert abs(reverse_kl(STUDENT, TEACHER).item() - reverse) < 1e-12
    assert abs(forward_kl(STUDENT, TEACHER).item() - forward) < 1e-12


def test_forward_kl_is_reverse_kl_with_the_models_swapped() -> None:
    assert torch.equal(forward_kl(STUDENT, TEACHER), reverse_kl(TEACHER, STUDENT))


def test_forward_gradient_in_closed_form() -> None:
    student, teacher = random_logits()
    forward_kl(student.log_softmax(-1), teacher.log_softmax(-1)).sum().backward()
    assert (student.grad - (student.softmax(-1) - teacher.softmax(-1))).abs().max() < 1e-12


def test_reverse_gradient_in_closed_form() -> None:
    student, teacher = random_logits()
    value = reverse_kl(student.log_softmax(-1), teacher.log_softmax(-1))
    value.sum().backward()
    ratio = student.log_softmax(-1) - teacher.log_softmax(-1)
    assert (student.grad - student.softmax(-1) * (ratio - value[:, None])).abs().max() < 1e-12


@BOTH
def test_the_gradient_of_a_kl_is_that_of_finite_differences(divergence: Divergence) -> None:
    student, teacher = random_logits(3, 4)
    assert torch.autograd.gradcheck(
        lambda left, right: divergence(left.log_softmax(-1), right.log_softmax(-1)), (student, teacher.requires_grad_())
    )


def test_an_expected_log_ratio_has_the_value_and_the_slopes_of_its_formula_to_the_second_order() -> None:
    tables = [each.detach().log_softmax(-1).requires_grad_() for each in random_logits(3, 4)]
    plain = (tables[0].exp() * (tables[0] - tables[1])).sum(-1)
    assert torch.allclose(expected_log_ratio(*tables), plain)
    outer = torch.tensor([0.5, -1.0, 2.0])
    found, wanted = (torch.autograd.grad((each * outer).sum(), tables) for each in (expected_log_ratio(*tables), plain))
    assert all(torch.allclose(*pair) for pair in zip(found, wanted, strict=True))
    assert torch.autograd.gradcheck(expected_log_ratio, tables)
    assert torch.autograd.gradgradcheck(expected_log_ratio, tables)


@pytest.mark.parametrize("learns", [0, 1])
def test_an_expected_log_ratio_gives_a_slope_to_the_table_that_learns_alone(learns: int) -> None:
    tables = [each.detach().log_softmax(-1) for each in random_logits(3, 4)]
    tables[learns].requires_grad_()
    expected_log_ratio(*tables).sum().backward()
    slopes = tables[0].exp() * (tables[0] - tables[1] + 1), -tables[0].exp()
    assert torch.allclose(tables[learns].grad, slopes[learns]) and tables[1 - learns].grad is None


def test_one_hot_teacher_makes_forward_the_cross_entropy() -> None:
    student, _ = random_logits(2, 3)
    teacher = torch.tensor([[0.0, -INF, -INF], [-INF, -INF, 0.0]], dtype=torch.float64)
    value = forward_kl(student.log_softmax(-1), teacher)
    value.sum().backward()
    assert torch.allclose(value, -student.log_softmax(-1)[[0, 1], [0, 2]])
    assert torch.allclose(student.grad, student.softmax(-1) - teacher.exp())


def test_one_hot_student_leaves_reverse_finite() -> None:
    logits = torch.tensor([[0.0, -INF, -INF]], dtype=torch.float64, requires_grad=True)
    value = reverse_kl(logits.log_softmax(-1), TEACHER)
    value.sum().backward()
    assert abs(value.item() + math.log(0.9)) < 1e-12
    assert torch.equal(logits.grad, torch.zeros(1, 3, dtype=torch.float64))


@BOTH
def test_class_that_both_exclude_changes_nothing(divergence: Divergence) -> None:
    padding = torch.full((1, 1), -INF, dtype=torch.float64)
    student = torch.cat([STUDENT, padding], -1).requires_grad_()
    value = divergence(student.log_softmax(-1), torch.cat([TEACHER, padding], -1))
    value.sum().backward()
    assert torch.allclose(value, divergence(STUDENT, TEACHER))
    assert torch.isfinite(student.grad).all()


def test_a_kl_is_large_where_support_is_missing() -> None:
    narrow = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    least = math.log(2.0**-149)
    shared = sum(p * math.log(p / q) for p, q in zip(TEACHER.exp()[0, :2].tolist(), (0.5, 0.5), strict=True))
    last = TEACHER.exp()[0, 2].item()
    expected = shared + last * (math.log(last) - least)
    assert forward_kl(narrow, TEACHER).item() == pytest.approx(expected, rel=1e-12)
    assert reverse_kl(TEACHER, narrow).item() == pytest.approx(expected, rel=1e-12)


@BOTH
def test_unequal_shapes_are_refused(divergence: Divergence) -> None:
    with pytest.raises(ValueError, match=r"same shape, got \(1, 3\) and \(1, 2\)"):
        divergence(STUDENT, TEACHER[:, :2])


def test_docstring_examples() -> None:
    done = doctest.testmod(module)
    assert done.attempted >= 4
    assert done.failed == 0


def test_jeffreys_is_the_sum_of_both_kls() -> None:
    student, teacher = random_tables()
    both = forward_kl(student, teacher) + reverse_kl(student, teacher)
    torch.testing.assert_close(jeffreys(student, teacher), both, rtol=2e-5, atol=1e-9)


def test_total_variation_is_at_most_one_and_obeys_pinsker() -> None:
    student, teacher = random_tables(500)
    distance = total_variation(student, teacher)
    smaller_kl = torch.minimum(forward_kl(student, teacher), reverse_kl(student, teacher))
    assert (distance <= 1).all() and (distance.square() <= smaller_kl / 2).all()
    disjoint = torch.tensor([[1.0, 0.0]]).double().log(), torch.tensor([[0.0, 1.0]]).double().log()
    assert total_variation(*disjoint).item() == 1
