"""Properties that hold for every divergence, whatever its module."""

import doctest
import math
from types import ModuleType

import pytest
import torch

from minidist.losses import adaptive, divergences, mixtures, powers
from tests.support.divergences import FAMILY, INF, centred, gradient, random_logits

WEIGHTED = {"akl", "akl paper", "todi", "skew reverse detached"}  # parts of the value get no gradient
EVERY = pytest.mark.parametrize("name", FAMILY)


@EVERY
def test_a_divergence_is_zero_when_equal_and_never_negative(name: str) -> None:
    student, teacher = random_logits(rows=300)
    divergence = FAMILY[name]
    q = student.log_softmax(-1)
    assert divergence(q, q).abs().max() < 1e-12
    assert gradient(divergence, student, student.detach()).abs().max() < 1e-12
    values = divergence(q, teacher.log_softmax(-1))
    assert values.shape == (300,) and (values > 0).all()


@pytest.mark.parametrize("name", sorted(FAMILY.keys() - WEIGHTED))
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    student, teacher = random_logits(3, 4)
    assert torch.autograd.gradcheck(lambda left: FAMILY[name](left.log_softmax(-1), teacher.log_softmax(-1)), (student,))


@EVERY
def test_a_row_depends_on_neither_class_order_nor_other_rows(name: str) -> None:
    student, teacher = (logits.detach().log_softmax(-1) for logits in random_logits())
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    values = FAMILY[name](student, teacher)
    torch.testing.assert_close(FAMILY[name](student[:, order], teacher[:, order]), values)
    torch.testing.assert_close(FAMILY[name](student[2:3], teacher[2:3]), values[2:3])


@EVERY
def test_a_class_that_both_exclude_changes_nothing(name: str) -> None:
    student, teacher = random_logits()
    shut = torch.full((6, 2), -INF, dtype=torch.float64)
    wide = torch.cat([student.detach(), shut], -1).requires_grad_()
    values = FAMILY[name](wide.log_softmax(-1), torch.cat([teacher, shut], -1).log_softmax(-1))
    if name != "alpha beta 0 0":  # where logarithms alone count, a class at the floor does
        tolerance = {"atol": 1e-9, "rtol": 1e-9} if "alpha" in name else {}
        torch.testing.assert_close(values, FAMILY[name](student.log_softmax(-1), teacher.log_softmax(-1)), **tolerance)
    slope = torch.autograd.grad(values.sum(), wide)[0]
    assert slope.isfinite().all() and slope[:, 7:].abs().max() < 1e-9


@pytest.mark.parametrize("name", sorted(FAMILY))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disjoint_distributions_have_a_finite_divergence_and_gradient(name: str, dtype: torch.dtype) -> None:
    student = torch.tensor([[0.0, -INF, -INF], [0.0, 1.0, -INF], [5.0, 0.0, 1.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-INF, 0.0, -INF], [-INF, -INF, 0.0], [-INF, -INF, 0.0]], dtype=dtype)
    values = FAMILY[name](student.log_softmax(-1), teacher.log_softmax(-1))
    assert values.isfinite().all() and (values > 0).all()
    assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


def test_gradients_in_closed_form() -> None:
    student, teacher = random_logits()
    q, p = student.detach().softmax(-1), teacher.softmax(-1)
    log = (q / p).log()
    wanted = {"jeffreys": q - p + centred(q, log), "total variation": centred(q, 0.5 * (q - p).sign())}
    m = 0.1 * p + 0.9 * q
    wanted["jsd 0.1"] = 0.9 * centred(q, (q / m).log())
    wanted["skew forward"] = -0.9 * centred(q, p / m)
    m = 0.9 * p + 0.1 * q
    wanted["skew reverse"] = centred(q, (q / m).log() - 0.1 * q / m)
    wanted["skew reverse detached"] = centred(q, (q / m).log())
    share = p / (p + q)
    inner = (1 - share) * (log + 1)
    wanted["todi"] = -share * p + q * (share * p).sum(-1, keepdim=True) + centred(q, inner)
    h = -(p**0.2 * q**0.7 - q**0.9) / 0.2
    wanted["alpha beta"] = h - q * h.sum(-1, keepdim=True)
    wanted["jsd normalised 0.9"] = centred(q, (q / (0.9 * p + 0.1 * q)).log()) / 0.9
    unsure = -(p * p.log()).sum(-1, keepdim=True) > 1
    assert 0 < int(unsure.sum()) < len(p), "the gate is open for some"
    wanted["gated"] = centred(q, log) + unsure * (q - p)
    for name, slope in wanted.items():
        assert (gradient(FAMILY[name], student, teacher) - slope).abs().max() < 1e-12, name


@EVERY
def test_unequal_shapes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="same shape"):
        FAMILY[name](torch.zeros(1, 3), torch.zeros(1, 2))


@pytest.mark.parametrize("name", ["jeffreys", "todi"])
def test_a_class_that_one_side_excludes_counts_with_the_least_float32(name: str) -> None:
    some = torch.tensor([[0.5, 0.3, 0.2]]).log()
    fewer = torch.tensor([[0.5, 0.5, 0.0]]).log()
    least, matched = math.log(2.0**-149), sum(p * math.log(p / q) for p, q in ((0.5, 0.5), (0.3, 0.5)))
    matched += sum(p * math.log(p / q) for p, q in ((0.5, 0.5), (0.5, 0.3)))
    found = FAMILY[name](some, fewer).item(), FAMILY[name](fewer, some).item()
    assert found == pytest.approx([matched + 0.2 * (math.log(0.2) - least)] * 2, rel=1e-5)
    logits = fewer.clone().requires_grad_()
    slope = torch.autograd.grad(FAMILY[name](logits.log_softmax(-1), some).sum(), logits)[0]
    assert slope.isfinite().all(), "what the student excludes has a gradient all the same"


@pytest.mark.parametrize("module", [divergences, mixtures, adaptive, powers])
def test_docstring_examples(module: ModuleType) -> None:
    done = doctest.testmod(module)
    assert done.attempted >= 2 and done.failed == 0
