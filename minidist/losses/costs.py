"""Costs of moving one row's distribution onto another's: [N, M] tables of distances between rows, never [N, M, V].

The classes are processed in slices, and each slice is recomputed in the backward pass.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")
Norm = Literal["l1", "l2"]
ELEMENTS = 2**24
"""Most elements of a [rows, rows, classes] slice: 64 MiB in float32."""


def pairwise_cost(student_NC: Tensor, teacher_MC: Tensor, *, norm: Norm = "l1", elements: int = ELEMENTS) -> Tensor:
    """Distance of every row of one table from every row of another: entry (i, j) is ||q_i - p_j||.

    Args:
        student_NC: log-probabilities, [N, C], nats; or [N], numbers of a regression, with distance |s_i - t_j|.
        teacher_MC: log-probabilities, [M, C]; or [M], int64, labels as one-hot rows; or [M], numbers.
        norm: l1, sum over classes of |q - p|, at most 2; or l2, the root of the sum of squares, at most the root of 2.
        elements: most elements of an [N, M, classes] slice, which sets the classes of a slice.

    Returns:
        [N, M], float32 or float64. Where two rows are equal, distance and gradient are 0. With labels the rows must sum to one,
        and an l2 distance near 0 is exact to the root of the rounding error.

    Raises:
        ValueError: the shapes or dtypes do not match these cases.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0], [0.5, 0.5]]).log()
        >>> pairwise_cost(student, teacher).tolist()
        [[1.0, 0.0], [2.0, 1.0]]
        >>> pairwise_cost(student, torch.tensor([1, 1])).tolist()
        [[1.0, 1.0], [2.0, 2.0]]

    Source: Cui et al., SinKD, arXiv:2402.17110, the batch-wise cost; the released code takes l1.
    """
    power = {"l1": 1, "l2": 2}[norm]
    labels = [table.dim() == 1 and not table.is_floating_point() for table in (student_NC, teacher_MC)]
    if labels[1] and (labels[0] or student_NC.dim() == 2):
        return _to_labels(student_NC, teacher_MC, power)
    if student_NC.dim() == teacher_MC.dim() == 1 and not any(labels):
        return (wide(student_NC)[:, None] - wide(teacher_MC)).abs()
    if student_NC.dim() != 2 or teacher_MC.dim() != 2 or student_NC.shape[-1] != teacher_MC.shape[-1]:
        raise ValueError(
            f"rows of {tuple(student_NC.shape)} {student_NC.dtype} and of {tuple(teacher_MC.shape)} {teacher_MC.dtype} cannot "
            "be compared; give two tables over the same classes, a table and int64 labels, or two vectors of floating point"
        )
    width = max(1, elements // max(1, len(student_NC) * len(teacher_MC)))
    # Split instead of sliced: the gradients of n slices would be n tables as wide as the vocabulary.
    slices = list(zip(student_NC.split(width, -1), teacher_MC.split(width, -1), strict=True))

    def of_slice(left: Tensor, right: Tensor) -> Tensor:
        # A matrix product would lose small distances to cancellation.
        gaps = torch.cdist(wide(left).exp(), wide(right).exp(), p=power, compute_mode="donot_use_mm_for_euclid_dist")
        return gaps**power

    distances = (recomputed(of_slice, *pair, alone=len(slices) == 1) for pair in slices)
    return _root(reduce(torch.add, distances), power)


def top_k_cost(
    student_NV: Tensor, top_ids_MK: Tensor, top_logprobs_MK: Tensor, *, norm: Norm = "l1", elements: int = ELEMENTS
) -> Tensor:
    """`pairwise_cost` over the K tokens that each teacher row lists and one class for all the rest, l1.

    Entry (i, j) puts both rows into the K + 1 classes of teacher row j. It is never above the distance over the full
    vocabulary, since |sum of the rest| is at most the sum of |the rest|, and equals it at K = V.

    Args:
        student_NV: log-probabilities of the student, [N, V], nats, each row summing to one in probability.
        top_ids_MK: the tokens that the teacher lists, [M, K], int64, no token twice in a row.
        top_logprobs_MK: the teacher's log-probabilities of them, [M, K], nats.
        norm: l1; l2 is refused, since putting classes together can raise it.
        elements: most elements of an [N, rows, K] slice.

    Returns:
        [N, M], float32 or float64, from 0 to 2.

    Raises:
        ValueError: the norm is not l1, K is above V, or the shapes of ids and log-probabilities differ.

    Example: 0.5 against 0.8 for the listed token, and 0.5 against 0.2 for all others.
        >>> student = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> round(top_k_cost(student, torch.tensor([[0]]), torch.tensor([[0.8]]).log()).item(), 4)
        0.6

    Source: the l1 cost of SinKD, arXiv:2402.17110, after coarse-graining.
    """
    if norm != "l1":
        raise ValueError("the l2 cost needs the teacher's full vocabulary (over top K and tail it may rise); set cost=l1")
    if top_ids_MK.shape != top_logprobs_MK.shape or top_ids_MK.dim() != 2 or top_ids_MK.shape[-1] > student_NV.shape[-1]:
        raise ValueError(
            f"the teacher's top K are ids {tuple(top_ids_MK.shape)} and log-probabilities {tuple(top_logprobs_MK.shape)} for "
            f"a student of {student_NV.shape[-1]} tokens; both are [M, K], with K at most the vocabulary"
        )
    whole = top_ids_MK.shape[-1] == student_NV.shape[-1]

    def of_rows(ids: Tensor, listed: Tensor) -> Tensor:
        gap_NMK = wide(student_NV[:, ids]).exp() - wide(listed).exp()
        distance = gap_NMK.abs().sum(-1)
        # Both rows sum to one, so the difference on the rest is minus the difference on the listed tokens.
        return distance if whole else distance + gap_NMK.sum(-1).abs()

    rows = max(1, elements // max(1, len(student_NV) * top_ids_MK.shape[-1]))
    pieces = list(zip(top_ids_MK.split(rows), top_logprobs_MK.split(rows), strict=True))
    return torch.cat([recomputed(of_rows, *piece, alone=len(pieces) == 1) for piece in pieces], -1)


def wide(values: Tensor) -> Tensor:
    """At least float32: half precision is too coarse for differences of probabilities, and rounds 19 nats to 0.015."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def running_sum(probabilities: Tensor) -> Tensor:
    """Sums of the probabilities up to each, along the last axis. Where results must be repeatable on a GPU, which has no such
    kernel for floating-point numbers, in units of 2^-50."""
    if probabilities.is_cuda and torch.are_deterministic_algorithms_enabled():
        return in_units(probabilities)
    return probabilities.cumsum(-1)


def in_units(probabilities: Tensor) -> Tensor:
    """`running_sum` in whole numbers of 2^-50."""
    units = (probabilities.double() * 2.0**50).round_().long().cumsum(-1)
    return (units.double() * 2.0**-50).to(probabilities.dtype)


def recomputed(function: Callable[..., T], *arguments: Any, alone: bool) -> T:
    """The function's value; unless its argument is `alone`, inner tables are recomputed in the backward pass."""
    if alone:
        return function(*arguments)
    return cast(T, checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False))


def _to_labels(student_NC: Tensor, labels_M: Tensor, power: int) -> Tensor:
    """Distance to one-hot rows, computed from the columns of the labels."""
    if student_NC.dim() == 1:
        differ_NM = (student_NC[:, None] != labels_M).to(torch.get_default_dtype())
        return differ_NM * 2 ** (1 / power)
    missing_NM = -torch.expm1(wide(student_NC[:, labels_M]))
    if power == 1:
        return 2 * missing_NM
    squares_N1 = wide(student_NC).mul(2).exp().sum(-1, keepdim=True)
    rest_NM = (squares_N1 - (1 - missing_NM).square()).clamp(min=0)
    return _root(rest_NM + missing_NM.square(), power)


def _root(total: Tensor, power: int) -> Tensor:
    """The root of `power`, with gradient 0 where the total is 0."""
    if power == 1:
        return total
    equal = total == 0
    return total.masked_fill(equal, 1.0).sqrt().masked_fill(equal, 0.0)
