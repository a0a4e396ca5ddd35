"""Optimal transport with an entropic term, in the log domain, as a loss: SinKD for classifiers, regressions and decoders.

Log-probabilities in nats, student first. Axes: N rows (samples, or loss tokens), B the rows of one group, C classes.
"""

from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

from minidist.losses.costs import ELEMENTS, Norm, formed_again, pairwise_cost, top_k_cost, wide
from minidist.losses.divergences import same_shape

Gradient = Literal["unrolled", "envelope"]
Teacher = Tensor | tuple[Tensor, Tensor]
"""Log-probabilities [N, C], labels [N] (int64), numbers [N], or the likeliest tokens and their log-probabilities, [N, K]."""
RELEASED_SCALE = 0.001
"""What SinKD's code for BERT multiplies the sum over a batch by, before the loss weight (beta) of 0.8. Student and teacher are
there softened at temperature 2, which is the caller's to do; cost l1, epsilon 0.1, 20 iterations are the defaults here."""
LARGEST_CLASSES = 4096


class Settings(TypedDict, total=False):
    """The keywords of `sinkhorn`, where they are passed on."""

    cost: Norm
    epsilon: float
    iterations: int
    tolerance: float | None
    gradient: Gradient
    debias: bool
    scale: float


@dataclass(frozen=True)
class Moved:
    """`distance_N`, what each row's distribution is moved by, with the gradient; `marginal_error_N`, how far the plan of the
    row's group is from its marginals at most."""

    distance_N: Tensor
    marginal_error_N: Tensor


@dataclass(frozen=True)
class Plan:
    """A plan: what of row i goes to row j. `log_plan` [..., R, C] carries the gradient; `marginal_error` [...] is the largest
    difference of a row's sum from what it should be (the columns' are exact)."""

    log_plan: Tensor
    marginal_error: Tensor


def plan(
    cost_BB: Tensor,
    *,
    epsilon: float,
    iterations: int = 20,
    tolerance: float | None = None,
    sizes_G: Tensor | None = None,
) -> Plan:
    """The entropic transport plan between B rows and B rows of equal weight: rows scaled to 1, then columns to 1, repeated.

    It tends to the minimum of <P, D> + epsilon * sum of P (log P - 1) over all P whose rows and columns sum to 1: B times the
    plan of marginals 1 / B. All in logarithms, so that no epsilon and no cost empties a row.

    Args:
        cost_BB: cost D of moving row i to row j, [B, B], any finite numbers; halves are taken to float32. [G, B, B] are as many
            plans, each by itself.
        epsilon: weight of the entropy, in the unit of the cost, above 0. Large spreads every row over all, small matches them.
        iterations: pairs of scalings; with a tolerance, the most that are made.
        tolerance: stop when no row's sum is further than this from 1. None: make all iterations.
        sizes_G: of G plans, how many rows and columns count in each, [G]; those after are padding, each matched with itself.

    Returns:
        The plan, [B, B] or [G, B, B], and its marginal error, [] or [G].

    Raises:
        ValueError: a cost that is not square, or a setting out of range.

    Example: for a cost of [[0, 1], [1, 0]] the diagonal holds 1 / (1 + exp(-1 / epsilon)).
        >>> found = plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=1.0)
        >>> [[round(value, 4) for value in row] for row in found.log_plan.exp().tolist()], round(found.marginal_error.item(), 4)
        ([[0.7311, 0.2689], [0.2689, 0.7311]], 0.0)

    Source: Cuturi, Sinkhorn distances, arXiv:1306.0895; marginals and order as in SinKD, arXiv:2402.17110.
    """
    if cost_BB.dim() not in (2, 3) or cost_BB.shape[-2] != cost_BB.shape[-1]:
        raise ValueError(
            f"a cost between the rows of one group is [B, B], got {tuple(cost_BB.shape)}; use as many rows of both"
        )
    _check(epsilon, iterations, tolerance)
    log_plan = -wide(cost_BB) / epsilon
    if sizes_G is not None:
        log_plan = _padding_to_itself(log_plan, sizes_G)
    ones, settled = log_plan.new_ones(log_plan.shape[:-1]), None
    for _ in range(iterations):
        scaled = log_plan - log_plan.logsumexp(-1, keepdim=True)
        scaled = scaled - scaled.logsumexp(-2, keepdim=True)
        # A plan that is within the tolerance stays as it is while others go on.
        log_plan = scaled if settled is None else torch.where(settled[..., None, None], log_plan, scaled)
        if tolerance is not None:
            settled = _row_error(log_plan, ones) < tolerance
            if bool(settled.all()):
                break
    return Plan(log_plan, _row_error(log_plan, ones))


def _padding_to_itself(log_plan: Tensor, sizes_G: Tensor) -> Tensor:
    places = torch.arange(log_plan.shape[-1], device=log_plan.device)
    padding_GB = places >= sizes_G[:, None]
    outside = padding_GB[:, :, None] | padding_GB[:, None, :]
    itself = places[:, None] == places
    return log_plan.masked_fill(outside & ~itself, -torch.inf).masked_fill(outside & itself, 0.0)


def sinkhorn(student_NC: Tensor, teacher: Teacher, **settings: Unpack[Settings]) -> Tensor:
    """Sinkhorn distance <P, D> between the N rows of the student and the N rows of the teacher, taken as one group.

    D are the distances between rows, P the `plan`. **It is blind to the order of the rows:** a student that answers every
    sample as the teacher answers another one loses nothing. So it is no loss by itself, and is paired with a term for each row
    (a KL, or cross-entropy) by default. Nor is it 0 at equality, where the entropy still mixes rows, unless debiased.

    Args:
        student_NC: log-probabilities of the student, [N, C], nats; or [N], its numbers in a regression.
        teacher: log-probabilities, [N, C]; labels, [N], int64; numbers, [N]; or (token ids, log-probabilities), both [N, K],
            the teacher's likeliest, with one class for the rest.
        cost: distance between two rows, l1 (at most 2; the default) or l2; of numbers, their absolute difference.
        epsilon, iterations, tolerance: of `plan`; 0.1, 20 and None by default.
        gradient: unrolled, the default, follows every iteration, and is that of the value returned. envelope holds the plan
            fixed, and is at convergence that of <P, D> + epsilon * sum of P (log P - 1), of which the value leaves the entropy
            out.
        debias: take off half of the student's distance to itself and half of the teacher's, row by row, so that equal groups
            (in any order) have 0. Needs a teacher whose rows are known in full. Off by default.
        scale: factor of every row, 1 by default; RELEASED_SCALE is that of SinKD's code.

    Returns:
        [N]: row i is scale * sum over j of P_ij D_ij. Their sum is the group's loss: not negative, in the unit of the cost.

    Raises:
        ValueError: groups of other sizes, a setting out of range, or a teacher that the cost or debias cannot use.

    Example: rows far apart are matched whatever their order.
        >>> rows = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
        >>> [round(sinkhorn(rows, teacher, epsilon=0.5).sum().item(), 4) for teacher in (rows, rows.flip(0))]
        [0.1253, 0.1253]
        >>> sinkhorn(rows, rows, epsilon=0.5, debias=True).sum().item()
        0.0

    Source: Cui et al., SinKD, arXiv:2402.17110, batch-wise; debiased, Feydy et al., arXiv:1810.08278.
    """
    return _of_groups([student_NC], [teacher], **settings).distance_N


def grouped_sinkhorn(student_NV: Tensor, teacher: Teacher, group_N: Tensor, **settings: Unpack[Settings]) -> Moved:
    """`sinkhorn` of each group of rows by itself: for decoders, whose groups are the loss tokens of a few sequences.

    Args:
        student_NV: log-probabilities of the student, [N, V], nats.
        teacher: as in `sinkhorn`: the full vocabulary, or the teacher's likeliest tokens. The cost of a group of B tokens takes
            B * B * V operations over the full vocabulary and B * B * K over the top K, so groups are of at most some hundreds.
        group_N: the group of each row, [N], int64; the rows of a group follow one another.
        settings: the keywords of `sinkhorn`.

    Returns:
        [N] and [N]: the rows of `sinkhorn` for each group, and the marginal error of its plan.

    Raises:
        ValueError: a group that comes back after another, or as many groups as not rows; and what `sinkhorn` refuses.

    Example: of two groups, the second is matched across its rows, and a group of one row has its distance.
        >>> student, teacher = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]).log(), torch.tensor([0, 1, 0])
        >>> grouped_sinkhorn(student, teacher, torch.tensor([7, 8, 8]), epsilon=0.01).distance_N.tolist()
        [1.0, 0.0, 0.0]

    Source: the batch-wise loss of SinKD, arXiv:2402.17110, over groups of tokens.
    """
    names, counts = torch.unique_consecutive(group_N, return_counts=True)
    if len(group_N) != len(student_NV) or len(names.unique()) != len(names):
        raise ValueError(
            f"{len(student_NV)} rows have {len(group_N)} group indices, of {len(names.unique())} groups in {len(names)} runs; "
            "give every row a group, and let the rows of a group follow one another"
        )
    sizes = counts.tolist()
    if not sizes:
        return Moved(student_NV.sum(-1), student_NV.sum(-1).detach())
    if isinstance(teacher, tuple):
        pieces: list[Teacher] = list(zip(*(table.split(sizes) for table in teacher), strict=True))
    else:
        pieces = list(teacher.split(sizes))
    return _of_groups(list(student_NV.split(sizes)), pieces, **settings)


def _of_groups(
    students: list[Tensor],
    teachers: list[Teacher],
    *,
    cost: Norm = "l1",
    epsilon: float = 0.1,
    iterations: int = 20,
    tolerance: float | None = None,
    gradient: Gradient = "unrolled",
    debias: bool = False,
    scale: float = 1.0,
) -> Moved:
    """`sinkhorn` of each pair, one after the other: each cost by itself, all plans together."""
    sizes = [len(student) for student in students]

    def moved(costs: list[Tensor]) -> Moved:
        counts = torch.tensor(sizes, device=costs[0].device) if len(costs) > 1 else None
        cost_GBB = costs[0] if counts is None else _padded(costs)
        basis = cost_GBB.detach() if gradient == "envelope" else cost_GBB
        found = plan(basis, epsilon=epsilon, iterations=iterations, tolerance=tolerance, sizes_G=counts)
        moved_GB = (found.log_plan.exp() * cost_GBB).sum(-1)
        error_GB = found.marginal_error[..., None].expand_as(moved_GB)
        if counts is None:
            return Moved(moved_GB, error_GB)
        real_GB = torch.arange(moved_GB.shape[1], device=counts.device) < counts[:, None]
        return Moved(moved_GB[real_GB], error_GB[real_GB])

    def between(left: list[Tensor], right: list[Teacher]) -> Moved:
        pairs = zip(left, right, strict=True)
        return moved(
            [top_k_cost(a, *b, norm=cost) if isinstance(b, tuple) else pairwise_cost(a, b, norm=cost) for a, b in pairs]
        )

    whole = [teacher for teacher in teachers if not isinstance(teacher, tuple)]
    if debias and len(whole) < len(teachers):
        raise ValueError("debias needs distances between teacher rows, which the top K do not give; take the full vocabulary")
    found = between(students, teachers)
    distance_N = found.distance_N
    if debias:
        distance_N = distance_N - (between(students, [*students]).distance_N + between(whole, [*whole]).distance_N) / 2
    return Moved(scale * distance_N, found.marginal_error_N)


def _padded(costs: list[Tensor]) -> Tensor:
    """[G, B, B] of zeros beyond each cost's own rows and columns."""
    widest = max(map(len, costs))
    return torch.stack(
        [torch.nn.functional.pad(table, (0, widest - table.shape[1], 0, widest - table.shape[0])) for table in costs]
    )


def sinkhorn_sample_wise(
    student_NC: Tensor,
    teacher_NC: Tensor,
    class_cost_CC: Tensor | None = None,
    *,
    epsilon: float = 0.1,
    iterations: int = 20,
    tolerance: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Sinkhorn distance of each row's two distributions over a cost between classes: SinKD's ablation, for few classes.

    Args:
        student_NC: log-probabilities of the student, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher, the same shape.
        class_cost_CC: cost of moving probability from class i to class j, [C, C]. None: 0 on the diagonal and 1 elsewhere, of
            which the distance tends to `total_variation` as epsilon tends to 0.
        epsilon, iterations, tolerance: as in `plan`, whose rows and columns here sum to the two distributions.
        scale: factor of every row.

    Returns:
        [N], in the unit of the cost; gradients follow every iteration. Not 0 at equality, and no row sees another.

    Raises:
        ValueError: other shapes, a setting out of range, or more than 4,096 classes, for each row takes C * C numbers.

    Example: half of the mass has to move.
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
        >>> round(sinkhorn_sample_wise(student, teacher).item(), 4)
        0.5

    Source: Cui et al., SinKD, arXiv:2402.17110, the sample-wise ablation.
    """
    same_shape(student_NC, teacher_NC)
    _check(epsilon, iterations, tolerance)
    classes = student_NC.shape[-1]
    if classes > LARGEST_CLASSES:
        raise ValueError(
            f"sample-wise Sinkhorn takes a {classes} x {classes} plan for each sample; it is for at most {LARGEST_CLASSES} "
            "classes: use the batch-wise loss"
        )
    if class_cost_CC is None:
        class_cost_CC = 1 - torch.eye(classes, device=student_NC.device)
    if class_cost_CC.shape != (classes, classes):
        raise ValueError(f"the cost between {classes} classes is [C, C], got {tuple(class_cost_CC.shape)}")

    cost_CC = wide(class_cost_CC)

    def moved(student: Tensor, teacher: Tensor) -> Tensor:
        found = _class_plan(student, teacher, cost_CC / epsilon, iterations, tolerance)
        return (found.log_plan.exp() * cost_CC).sum((1, 2))

    rows = max(1, ELEMENTS // classes**2)
    pieces = list(zip(student_NC.split(rows), teacher_NC.split(rows), strict=True))
    return scale * torch.cat([formed_again(moved, *piece, alone=len(pieces) == 1) for piece in pieces])


def _class_plan(student_NC: Tensor, teacher_NC: Tensor, exponent_CC: Tensor, iterations: int, tolerance: float | None) -> Plan:
    """Plans whose rows sum to one distribution and columns to the other, [N, C, C]; a class may have no mass."""
    rows, columns = wide(student_NC)[:, :, None], wide(teacher_NC)[:, None, :]
    right, log_plan = torch.zeros_like(columns), -exponent_CC
    for _ in range(iterations):
        # Potentials, not the plan scaled in place: a row without mass would be -inf less its sum of -inf.
        left = rows - (right - exponent_CC).logsumexp(2, keepdim=True)
        right = columns - (left - exponent_CC).logsumexp(1, keepdim=True)
        log_plan = left + right - exponent_CC
        if tolerance is not None and bool((_row_error(log_plan, rows[:, :, 0].exp()) < tolerance).all()):
            break
    return Plan(log_plan, _row_error(log_plan, rows[:, :, 0].exp()))


@torch.no_grad()
def _row_error(log_plan: Tensor, wanted: Tensor) -> Tensor:
    """Largest difference of a row's sum from what is wanted, of each plan."""
    gaps = (log_plan.exp().sum(-1) - wanted).abs()
    return gaps.amax(-1) if gaps.shape[-1] else gaps.sum(-1)


def _check(epsilon: float, iterations: int, tolerance: float | None) -> None:
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon of Sinkhorn is {epsilon}; it is the weight of the entropy, above 0, in the unit of the cost")
    if iterations < 1:
        raise ValueError(f"iterations of Sinkhorn is {iterations}; at least one pair of scalings makes a plan")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance of Sinkhorn is {tolerance}; it is a distance of a row's sum, above 0, or None")
