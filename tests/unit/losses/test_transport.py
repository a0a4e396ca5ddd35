"""Sinkhorn distances against POT, the assignment they tend to, finite differences, and what they are blind to."""

import doctest
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.autograd import grad, gradcheck

from minidist.config.divergences import TransportConfig
from minidist.losses import total_variation, transport
from minidist.losses.costs import Norm, pairwise_cost, top_k_cost
from minidist.losses.transport import TransportPlan, grouped_sinkhorn, sinkhorn, sinkhorn_sample_wise, transport_plan
from tests.support import divergences as support
from tests.support.divergences import plain_cost, slope

B, C = 8, 5
NORM = pytest.mark.parametrize("norm", ["l1", "l2"])
GRADIENT = pytest.mark.parametrize("gradient", ["unrolled", "envelope"])


def plan(cost_BB: Tensor, sizes_G: Tensor | None = None, **options: Any) -> TransportPlan:
    return transport_plan(cost_BB, TransportConfig(**options), sizes_G)


def random_logits(rows: int = B, classes: int = C) -> tuple[Tensor, Tensor]:
    return support.random_logits(rows, classes)


def tables(rows: int = B, classes: int = C, seed: int = 0) -> tuple[Tensor, Tensor]:
    return support.random_tables(rows, classes, seed)


@NORM
@pytest.mark.parametrize("debias", [False, True])
def test_labels_are_transported_as_one_hot_rows(norm: Norm, debias: bool) -> None:
    student, _ = tables()
    labels = torch.tensor([0, 4, 2, 2, 1, 0, 3, 1])
    hot = torch.nn.functional.one_hot(labels, C).double().log()
    losses = [sinkhorn(student, target, cost=norm, debias=debias) for target in (labels, hot)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-7)


def test_numbers_of_a_regression_are_matched_by_their_difference() -> None:
    student, teacher = torch.tensor([1.0, 5.0, -3.0], dtype=torch.float64), torch.tensor([4.9, -3.2, 1.1], dtype=torch.float64)
    assert pairwise_cost(student, teacher).tolist() == (student[:, None] - teacher).abs().tolist()
    assert sinkhorn(student, teacher, epsilon=0.01).tolist() == pytest.approx([0.1, 0.1, 0.2])
    far = sinkhorn(1e4 * student.float(), 1e4 * teacher.float(), epsilon=1e-3)
    assert far.tolist() == pytest.approx([1e3, 1e3, 2e3], rel=1e-3)
    moving = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert gradcheck(lambda numbers: sinkhorn(numbers, torch.arange(6.0).double()), (moving,))


@pytest.mark.parametrize("epsilon", [0.1, 0.3, 2.0])
def test_the_plan_is_that_of_pot(epsilon: float) -> None:
    cost = pairwise_cost(*tables())
    found = plan(cost, epsilon=epsilon, iterations=5000, tolerance=1e-11)
    weights = np.full(B, 1 / B)
    wanted = B * ot.sinkhorn(weights, weights, cost.numpy(), reg=epsilon, stopThr=1e-13, numItermax=20000)
    torch.testing.assert_close(found.log_plan.exp(), torch.from_numpy(wanted), rtol=1e-7, atol=1e-9)


def test_rows_and_columns_sum_to_one_up_to_the_reported_error() -> None:
    cost = pairwise_cost(*tables())
    errors = []
    for iterations in (1, 20):
        found = plan(cost, epsilon=0.1, iterations=iterations)
        table = found.log_plan.exp()
        torch.testing.assert_close(table.sum(0), torch.ones(B, dtype=torch.float64), rtol=0, atol=1e-13)
        assert found.marginal_error.item() == pytest.approx((table.sum(1) - 1).abs().max().item(), abs=1e-13)
        errors.append(found.marginal_error.item())
    assert errors[1] < errors[0] / 10 and errors[1] > 1e-3
    exact = plan(cost, epsilon=0.1, iterations=10000, tolerance=1e-12)
    assert exact.marginal_error < 1e-12 and not exact.marginal_error.requires_grad


def test_a_tolerance_ends_the_iterations() -> None:
    cost = pairwise_cost(*tables())
    every = [plan(cost, epsilon=0.1, iterations=count) for count in range(1, 40)]
    tolerance = 1e-2
    first = next(found for found in every if found.marginal_error < tolerance)
    assert torch.equal(plan(cost, epsilon=0.1, iterations=500, tolerance=tolerance).log_plan, first.log_plan)
    assert torch.equal(plan(cost, epsilon=0.1, iterations=1, tolerance=1e-9).log_plan, every[0].log_plan)


def test_the_log_domain_is_the_plain_algorithm_and_its_released_scale() -> None:
    student, teacher = tables(16, 3)
    cost = torch.cdist(student.exp(), teacher.exp(), p=1)
    table = torch.exp(-cost / 0.1)
    for _ in range(20):
        table = table / table.sum(1, keepdim=True)
        table = table / table.sum(0, keepdim=True)
    found = sinkhorn(student, teacher, scale=0.001)
    torch.testing.assert_close(found, 0.001 * (table * cost).sum(1), rtol=1e-12, atol=0)


def test_a_large_epsilon_spreads_and_a_small_one_matches() -> None:
    student, teacher = tables()
    cost = pairwise_cost(student, teacher)
    spread = plan(cost, epsilon=1e5)
    torch.testing.assert_close(spread.log_plan.exp(), torch.full((B, B), 1 / B, dtype=torch.float64), rtol=1e-4, atol=0)
    assert sinkhorn(student, teacher, epsilon=1e5).sum().item() == pytest.approx(B * cost.mean().item(), rel=1e-4)
    rows, columns = linear_sum_assignment(cost.numpy())
    best = cost.numpy()[rows, columns].sum()
    assert sinkhorn(student, teacher, epsilon=1e-3, iterations=20000, tolerance=1e-9).sum().item() == pytest.approx(
        best, abs=1e-3
    )
    assert best == pytest.approx(B * ot.emd2(np.full(B, 1 / B), np.full(B, 1 / B), cost.numpy()))


@NORM
def test_a_group_of_one_is_a_distance(norm: Norm) -> None:
    student, teacher = tables(1)
    found = sinkhorn(student, teacher, cost=norm, iterations=1)
    torch.testing.assert_close(found, plain_cost(student, teacher, norm)[:, 0])


def test_the_converged_distance_is_symmetric() -> None:
    student, teacher = tables()
    exact = partial(sinkhorn, iterations=10000, tolerance=1e-12)
    assert exact(student, teacher).sum().item() == pytest.approx(exact(teacher, student).sum().item(), rel=1e-9)
    assert sinkhorn(student, teacher).sum().item() == pytest.approx(sinkhorn(teacher, student).sum().item(), rel=2e-2)


@pytest.mark.parametrize("debias", [False, True])
def test_the_order_of_rows_does_not_matter(debias: bool) -> None:
    student, teacher = tables()
    order = torch.tensor([3, 0, 7, 2, 5, 1, 4, 6])
    values = sinkhorn(student, teacher, debias=debias)
    if not debias:
        torch.testing.assert_close(sinkhorn(student, teacher[order]), values)
    torch.testing.assert_close(sinkhorn(student, teacher[order], debias=debias).sum(), values.sum())
    torch.testing.assert_close(sinkhorn(student[order], teacher, debias=debias).sum(), values.sum())
    rolled = sinkhorn(teacher.roll(1, 0), teacher, debias=debias).sum()
    torch.testing.assert_close(rolled, sinkhorn(teacher, teacher, debias=debias).sum(), atol=1e-12, rtol=1e-9)


@NORM
def test_zero_at_equality_only_when_debiased(norm: Norm) -> None:
    student, _ = tables()
    assert sinkhorn(student, student, cost=norm).sum() > 0.01
    assert sinkhorn(student, student, cost=norm, debias=True).abs().max() == 0
    exact = {"debias": True, "epsilon": 0.5, "iterations": 1000, "tolerance": 1e-12}
    for gradient in ("unrolled", "envelope"):
        found = slope(lambda rows, kind=gradient: sinkhorn(rows, rows.detach(), cost=norm, gradient=kind, **exact), student)  # type: ignore[misc]
        assert found.abs().max() < 1e-9


@NORM
def test_debiased_is_never_negative(norm: Norm) -> None:
    for seed in range(12):
        student, teacher = tables(2 + seed % 5, 2 + seed % 4, seed)
        near = (teacher + 0.1 * student).log_softmax(-1)
        for epsilon in (0.03, 0.3, 3.0):
            for other in (teacher, near):
                found = sinkhorn(
                    other, student if other is teacher else teacher, cost=norm, epsilon=epsilon, iterations=100, debias=True
                )
                assert found.sum() > 0


def test_debiasing_subtracts_half_of_each_side_to_itself() -> None:
    student, teacher = tables()
    parts = [sinkhorn(*pair) for pair in ((student, teacher), (student, student), (teacher, teacher))]
    torch.testing.assert_close(sinkhorn(student, teacher, debias=True, scale=3.0), 3 * (parts[0] - parts[1] / 2 - parts[2] / 2))


@NORM
@GRADIENT
def test_value_is_the_plan_times_the_cost_by_row(norm: Norm, gradient: str) -> None:
    student, teacher = tables()
    cost = plain_cost(student, teacher, norm)
    table = plan(cost, epsilon=0.2, iterations=7).log_plan.exp()
    found = sinkhorn(student, teacher, cost=norm, epsilon=0.2, iterations=7, gradient=gradient)
    torch.testing.assert_close(found, torch.einsum("ij,ij->i", table, cost))


@NORM
@pytest.mark.parametrize("debias", [False, True])
def test_gradcheck_unrolled(norm: Norm, debias: bool) -> None:
    student, teacher = random_logits(4, 3)
    call = partial(sinkhorn, cost=norm, iterations=5, debias=debias)
    assert gradcheck(lambda rows: call(rows.log_softmax(-1), teacher.log_softmax(-1)), (student,))
    assert gradcheck(lambda rows: call(teacher.log_softmax(-1), rows.log_softmax(-1)), (student,))


@pytest.mark.parametrize("debias", [False, True])
def test_the_envelope_is_the_gradient_of_the_entropic_objective(debias: bool) -> None:
    student, teacher = random_logits(4, 3)
    exact = {"epsilon": 0.5, "iterations": 20000, "tolerance": 1e-13}

    def entropic(left: Tensor, right: Tensor) -> Tensor:
        cost = pairwise_cost(left, right)
        log_plan = plan(cost, **exact).log_plan  # type: ignore[arg-type]
        return (log_plan.exp() * (cost + 0.5 * (log_plan - 1))).sum()

    def objective(logits: Tensor) -> float:
        rows, others = logits.log_softmax(-1), teacher.log_softmax(-1)
        selves = (entropic(rows, rows) + entropic(others, others)) / 2 if debias else 0.0
        return float(entropic(rows, others) - selves)

    wanted, step = torch.zeros_like(teacher), 1e-5
    with torch.no_grad():
        for index in np.ndindex(*teacher.shape):
            shift = torch.zeros_like(teacher)
            shift[index] = step
            wanted[index] = (objective(student + shift) - objective(student - shift)) / (2 * step)
    calls = {
        kind: partial(sinkhorn, teacher=teacher.log_softmax(-1), gradient=kind, debias=debias, **exact)  # type: ignore[arg-type]
        for kind in ("envelope", "unrolled")
    }
    found = {kind: slope(call, student) for kind, call in calls.items()}
    assert (found["envelope"] - wanted).abs().max() < 1e-7
    assert (found["unrolled"] - wanted).abs().max() > 1e-3


@GRADIENT
@NORM
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_at_a_small_epsilon_in_few_bits_and_one_hot(gradient: str, norm: Norm, dtype: torch.dtype) -> None:
    student = torch.tensor([[30.0, 0.0, 0.0], [0.0, 1.0, -math.inf], [0.0, 2.0, 1.0]]).to(dtype).requires_grad_()
    teacher = (
        torch.tensor([[0.0, -math.inf, -math.inf], [-math.inf, 0.0, -math.inf], [-1.0, -2.0, -0.7]]).log_softmax(-1).to(dtype)
    )
    for target in (teacher, torch.tensor([0, 1, 1]), teacher.topk(2, -1)[::-1]):
        if isinstance(target, tuple) and norm == "l2":
            continue
        found = sinkhorn(student.log_softmax(-1), target, cost=norm, epsilon=1e-3, gradient=gradient)
        assert found.dtype == torch.float32 and found.isfinite().all()
        assert grad(found.sum(), student)[0].isfinite().all()
    table = plan(pairwise_cost(student.log_softmax(-1), teacher), epsilon=1e-3).log_plan.exp()
    torch.testing.assert_close(table.sum(0), torch.ones(3), atol=1e-5, rtol=0)
    far = plan(torch.tensor([[0.0, 6e4], [6e4, 0.0]]).to(dtype), epsilon=1e-3).log_plan
    assert far.dtype == torch.float32 and far.exp().tolist() == [[1.0, 0.0], [0.0, 1.0]]
    numbers = torch.tensor([6e4, -6e4, 3.0]).to(dtype)
    assert sinkhorn(numbers, numbers.flip(0), epsilon=1e-3).isfinite().all()
    ground = 100 * (1 - torch.eye(3, dtype=dtype))
    rows = sinkhorn_sample_wise(student.log_softmax(-1), teacher, ground, epsilon=1e-3)
    assert rows.isfinite().all() and grad(rows.sum(), student)[0].isfinite().all()


def _error(student: Tensor, teacher: transport.Teacher, options: dict[str, Any]) -> Tensor:
    """How far the plan of one group is from its marginals."""
    cost = top_k_cost(student, *teacher) if isinstance(teacher, tuple) else pairwise_cost(student, teacher)
    return plan(cost, **options).marginal_error


GROUPED: list[dict[str, Any]] = [
    {"epsilon": 0.3, "iterations": 4, "gradient": "envelope", "scale": 0.5},
    {"epsilon": 0.01, "iterations": 6, "cost": "l1"},
    {"epsilon": 0.05, "iterations": 300, "tolerance": 1e-3},
    {"epsilon": 0.05, "iterations": 300, "tolerance": 1e-3, "debias": True},
]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, options) for kind in ("full", "top", "labels") for options in GROUPED if kind != "top" or "debias" not in options],
)
def test_each_group_is_by_itself(kind: str, options: dict[str, Any]) -> None:
    logits, other = random_logits(9)
    top = other.log_softmax(-1).topk(2, -1)
    teacher: transport.Teacher = {"full": other.log_softmax(-1), "top": (top.indices, top.values), "labels": top.indices[:, 0]}[
        kind
    ]

    def part(rows: slice) -> transport.Teacher:
        return (teacher[0][rows], teacher[1][rows]) if isinstance(teacher, tuple) else teacher[rows]

    groups = torch.tensor([4, 4, 4, 9, 2, 2, 2, 2, 0])
    alone = [slice(0, 3), slice(3, 4), slice(4, 8), slice(8, 9)]
    moved = grouped_sinkhorn(logits.log_softmax(-1), teacher, groups, TransportConfig(**options))
    found = moved.distance_N
    wanted = torch.cat([sinkhorn(logits.log_softmax(-1)[rows], part(rows), **options) for rows in alone])
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-14)
    weight = torch.linspace(0.5, 2, 9).to(found)
    torch.testing.assert_close(*(grad((weight * each).sum(), logits, retain_graph=True)[0] for each in (found, wanted)))
    errors = [_error(logits.detach().log_softmax(-1)[rows], part(rows), options) for rows in alone]
    expected = torch.cat([error.expand(rows.stop - rows.start) for error, rows in zip(errors, alone, strict=True)])
    assert torch.allclose(moved.marginal_error_N, expected, atol=1e-12) and expected.max() > 0
    nothing = grouped_sinkhorn(logits[:0], part(slice(0, 0)), groups[:0], TransportConfig())
    assert nothing.distance_N.shape == nothing.marginal_error_N.shape == (0,)


def test_plans_end_one_by_one() -> None:
    """Each where it would end alone, though they are scaled together; what is padding is matched with itself."""
    sizes, tables = [4, 1, 3], torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings: dict[str, Any] = {"epsilon": 0.05, "iterations": 500, "tolerance": 1e-4}
    together = plan(tables, torch.tensor(sizes), **settings)
    alone = [plan(cost[:size, :size], **settings) for cost, size in zip(tables, sizes, strict=True)]
    assert len({round(float(each.marginal_error), 12) for each in alone}) == 3, "they end after different numbers of scalings"
    assert together.marginal_error.tolist() == pytest.approx([float(each.marginal_error) for each in alone], abs=1e-12)
    for table, size, each in zip(together.log_plan.exp(), sizes, alone, strict=True):
        assert torch.allclose(table[:size, :size], each.log_plan.exp())
        assert torch.equal(table[size:, size:], torch.eye(4 - size).to(table))
        assert not table[:size, size:].any() and not table[size:, :size].any()


def test_sample_wise_is_pot_for_each_sample() -> None:
    student, teacher = tables(4)
    ground = torch.rand(C, C, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = sinkhorn_sample_wise(student, teacher, ground, iterations=20000, tolerance=1e-12, scale=2.0)
    for row, left, right in zip(found, student.exp(), teacher.exp(), strict=True):
        table = ot.sinkhorn(left.numpy(), right.numpy(), ground.numpy(), reg=0.1, stopThr=1e-13, numItermax=20000)
        assert row.item() == pytest.approx(2 * (table * ground.numpy()).sum(), rel=1e-7)


def test_sample_wise_is_the_plain_algorithm() -> None:
    student, teacher = tables(4)
    ground = torch.rand(C, C, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kernel, right = (-ground / 0.2).exp(), torch.ones(4, C, dtype=torch.float64)
    for _ in range(3):
        left = student.exp() / (right @ kernel.T)
        right = teacher.exp() / (left @ kernel)
    wanted = (left[:, :, None] * kernel * right[:, None, :] * ground).sum((1, 2))
    torch.testing.assert_close(sinkhorn_sample_wise(student, teacher, ground, epsilon=0.2, iterations=3), wanted)


def test_sample_wise_of_equal_classes_is_total_variation_and_no_row_sees_another(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = tables()
    found = sinkhorn_sample_wise(student, teacher, epsilon=0.01, iterations=20000, tolerance=1e-10)
    torch.testing.assert_close(found, total_variation(student, teacher), rtol=0, atol=1e-4)
    whole = sinkhorn_sample_wise(student, teacher)
    torch.testing.assert_close(sinkhorn_sample_wise(student[2:3], teacher[2:3]), whole[2:3])
    logits, _ = random_logits()
    whole_slope = slope(lambda rows: sinkhorn_sample_wise(rows, teacher), logits)
    monkeypatch.setattr(transport, "ELEMENTS", 3 * C * C)
    torch.testing.assert_close(sinkhorn_sample_wise(student, teacher), whole)
    torch.testing.assert_close(slope(lambda rows: sinkhorn_sample_wise(rows, teacher), logits), whole_slope)
    assert sinkhorn_sample_wise(student[:0], teacher[:0]).shape == (0,)


def test_sample_wise_gradcheck_and_a_tolerance() -> None:
    student, teacher = random_logits(3, 4)
    assert gradcheck(lambda rows: sinkhorn_sample_wise(rows.log_softmax(-1), teacher.log_softmax(-1), iterations=5), (student,))
    pair = student.detach().log_softmax(-1), teacher.log_softmax(-1)
    loose = [
        sinkhorn_sample_wise(*pair, epsilon=0.05, **options)
        for options in ({"iterations": 1}, {"iterations": 500, "tolerance": 10.0})
    ]
    torch.testing.assert_close(*loose, rtol=0, atol=0)
    assert (sinkhorn_sample_wise(*pair, epsilon=0.05, iterations=500, tolerance=1e-9) != loose[0]).all()


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda s, t: plan(torch.zeros(2, 3), epsilon=1.0), r"\[B, B\], got \(2, 3\)"),
        (lambda s, t: sinkhorn(s, t[:3]), r"got \(8, 3\)"),
        (lambda s, t: sinkhorn(s, t, epsilon=0.0), "epsilon is 0.0; .* greater than 0"),
        (lambda s, t: sinkhorn(s, t, epsilon=math.inf), "epsilon is inf; .* finite"),
        (lambda s, t: sinkhorn(s, t, iterations=0), "iterations is 0; .* greater than or equal to 1"),
        (lambda s, t: sinkhorn(s, t, tolerance=0.0), "tolerance is 0.0; .* greater than 0"),
        (lambda s, t: sinkhorn_sample_wise(s, t, epsilon=-1.0), "epsilon is -1.0; .* greater than 0"),
        (lambda s, t: sinkhorn_sample_wise(s, t, torch.zeros(2, 2)), r"got \(2, 2\)"),
        (lambda s, t: sinkhorn_sample_wise(s, t[:, :2]), "same shape"),
        (lambda s, t: sinkhorn_sample_wise(torch.zeros(1, 4097), torch.zeros(1, 4097)), "at most 4096 classes"),
        (lambda s, t: sinkhorn(s, t[:, :2]), "over the same classes"),
        (lambda s, t: sinkhorn(s[:, 0], torch.arange(8)), "two vectors of floating point"),
        (lambda s, t: sinkhorn(s, t[:, 0]), "cannot be compared"),
        (lambda s, t: sinkhorn(s, t.topk(2, -1)[::-1], cost="l2"), "l2 cost needs the teacher's full vocabulary"),
        (lambda s, t: sinkhorn(s, t.topk(2, -1)[::-1], debias=True), "debias needs distances between teacher rows"),
        (lambda s, t: sinkhorn(s, t, weight=0.8), "unknown key weight"),
        (
            lambda s, t: grouped_sinkhorn(s, t, torch.tensor([0, 1] + 6 * [0]), TransportConfig()),
            "of 2 groups in 3 runs",
        ),
        (lambda s, t: grouped_sinkhorn(s, t, torch.zeros(7), TransportConfig()), "8 rows have 7 group indices"),
    ],
)
def test_unusable_arguments_are_refused(call: Callable[[Tensor, Tensor], Tensor], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        call(*tables())


def test_docstring_examples() -> None:
    done = doctest.testmod(transport)
    assert done.attempted >= 4 and done.failed == 0
