"""Costs between rows: distances from the definition, in slices of classes, and over the top K and their tail."""

import doctest
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck

from minidist.losses import costs
from minidist.losses.costs import pairwise_cost, top_k_cost
from tests.support.divergences import plain_cost, random_logits, random_tables, slope

B, C = 8, 5
NORM = pytest.mark.parametrize("norm", ["l1", "l2"])


@NORM
def test_cost_is_the_distance_of_rows(norm: costs.Norm) -> None:
    student, teacher = random_tables(B, C)
    torch.testing.assert_close(pairwise_cost(student, teacher[:6], norm=norm), plain_cost(student, teacher[:6], norm))
    assert pairwise_cost(student.float(), teacher.float()).dtype == torch.float32
    assert pairwise_cost(student, student, norm=norm).diagonal().tolist() == [0.0] * B


@NORM
@pytest.mark.parametrize("elements", [1, 2 * B * B, 3 * B * B])
def test_a_cost_in_slices_is_the_cost(norm: costs.Norm, elements: int) -> None:
    student, teacher = random_logits(B, C)
    weight = torch.rand(B, B, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def found(size: int) -> tuple[Tensor, Tensor, Tensor]:
        left, right = student.detach().requires_grad_(), teacher.detach().requires_grad_()
        cost = pairwise_cost(left.log_softmax(-1), right.log_softmax(-1), norm=norm, elements=size)
        return (cost, *grad((cost * weight).sum(), (left, right)))

    for sliced, whole in zip(found(elements), found(10**6), strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-12, atol=1e-14)
    wanted = slope(lambda rows: weight * plain_cost(rows, teacher.log_softmax(-1), norm), student)
    torch.testing.assert_close(found(elements)[1], wanted)


def test_slices_are_no_wider_than_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    cdist = torch.cdist

    def watched(left: Tensor, right: Tensor, **options: object) -> Tensor:
        widths.append(left.shape[-1])
        return cdist(left, right, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "cdist", watched)
    pairwise_cost(*random_tables(4, 100), elements=4 * 4 * 30)
    assert widths == [30, 30, 30, 10]


@NORM
def test_small_distances_are_not_lost(norm: costs.Norm) -> None:
    rows = torch.randn(40, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    moved = (rows.double() + 1e-4 * torch.randn(40, 50, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    found = pairwise_cost(rows, moved.float(), norm=norm).diagonal()
    torch.testing.assert_close(found.double(), plain_cost(rows.double(), moved, norm).diagonal(), rtol=5e-3, atol=0)


def test_nearly_certain_rows_and_halves_are_measured() -> None:
    logits = torch.randn(20000, 10, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += torch.linspace(3, 20, 20000)  # some of which leave a square below zero to rounding
    rows = logits.log_softmax(-1)
    found = pairwise_cost(rows, torch.zeros(1, dtype=torch.int64), norm="l2")
    wanted = plain_cost(rows, torch.eye(10)[:1].log(), "l2")
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-4)
    student, teacher = (table.bfloat16() for table in random_tables(B, C))
    top = teacher.topk(3, -1)
    for cost, exact in (
        (pairwise_cost(student, teacher), pairwise_cost(student.float(), teacher.float())),
        (pairwise_cost(student, top.indices[:, 0]), pairwise_cost(student.float(), top.indices[:, 0])),
        (top_k_cost(student, top.indices, top.values), top_k_cost(student.float(), top.indices, top.values.float())),
    ):
        assert cost.dtype == torch.float32 and torch.equal(cost, exact)


@pytest.mark.parametrize("count", [1, 3, C - 1, C])
@pytest.mark.parametrize("elements", [1, 3 * B * C, 10**6])
def test_the_top_k_and_their_tail_are_a_lower_bound(count: int, elements: int) -> None:
    logits, other = random_logits(B, C)
    teacher = other.log_softmax(-1)
    top = teacher.topk(count, -1)
    coarse = partial(top_k_cost, top_ids_MK=top.indices[:6], top_logprobs_MK=top.values[:6], elements=elements)
    found, full = coarse(logits.log_softmax(-1)), pairwise_cost(logits.log_softmax(-1), teacher[:6])
    by_hand = torch.empty(B, 6, dtype=torch.float64)
    for j in range(6):
        listed = top.indices[j]
        pair = [
            torch.cat([row[:, listed], 1 - row[:, listed].sum(-1, keepdim=True)], -1)
            for row in (logits.softmax(-1), teacher.exp())
        ]
        by_hand[:, j] = (pair[0] - pair[1][j]).abs().sum(-1)
    torch.testing.assert_close(found, by_hand)
    assert (found <= full + 1e-12).all()
    if count == C:
        torch.testing.assert_close(found, full)
        torch.testing.assert_close(slope(coarse, logits), slope(lambda rows: pairwise_cost(rows, teacher[:6]), logits))
    elif count < 3:
        assert (found < full - 1e-3).any(), "no K lost anything: the property was not tried"
    assert gradcheck(lambda free: coarse(free.log_softmax(-1)), (logits,))


@NORM
def test_labels_cost_as_much_as_one_hot_rows(norm: costs.Norm) -> None:
    logits, _ = random_logits(B, C)
    labels = torch.tensor([0, 4, 2, 2, 1, 0, 3, 1])
    hot = torch.nn.functional.one_hot(labels, C).double().log()
    by_label, by_row = partial(pairwise_cost, teacher_MC=labels, norm=norm), partial(pairwise_cost, teacher_MC=hot, norm=norm)
    torch.testing.assert_close(by_label(logits.log_softmax(-1)), by_row(logits.log_softmax(-1)))
    torch.testing.assert_close(slope(by_label, logits), slope(by_row, logits))
    torch.testing.assert_close(by_label(labels).double(), by_row(hot))
    certain = pairwise_cost(hot.float(), labels, norm=norm)
    assert certain.isfinite().all() and certain.diagonal().abs().max() == 0


@pytest.mark.parametrize(
    ("classes", "shape", "sentence"), [(6, (8, 6), "K at most the vocabulary"), (2, (8, 3), r"\(8, 2\) and .* \(8, 3\)")]
)
def test_lists_that_do_not_fit_are_refused(classes: int, shape: tuple[int, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        top_k_cost(random_tables(B, C)[0], torch.zeros(8, classes, dtype=torch.int64), torch.zeros(shape))


def test_docstring_examples() -> None:
    done = doctest.testmod(costs)
    assert done.attempted >= 4 and done.failed == 0
