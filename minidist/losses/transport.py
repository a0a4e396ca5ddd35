"""Entropic optimal transport as a loss, computed in the log domain: SinKD for classifiers, regressions and decoders.

Log-probabilities in nats, student first. Axes: N rows (samples, or loss tokens), B rows of one group, C classes, G groups.
Ranges and defaults of the options stand in `config.divergences.TransportConfig`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minidist.config.divergences import TransportConfig
from minidist.losses.costs import ELEMENTS, pairwise_cost, recomputed, top_k_cost, wide
from minidist.losses.divergences import same_shape

Teacher = Tensor | tuple[Tensor, Tensor]
"""Log-probabilities [N, C], labels [N] (int64), numbers [N], or the likeliest tokens and their log-probabilities, [N, K]."""
LARGEST_CLASSES = 4096


@dataclass(frozen=True)
class Moved:
    """`distance_N`: transport cost of each row, with gradient. `marginal_error_N`: largest marginal error of the plan of the
    row's group."""

    distance_N: Tensor
    marginal_error_N: Tensor


@dataclass(frozen=True)
class TransportPlan:
    """`log_plan` [..., B, B]: logarithm of the mass that row i sends to row j, with gradient. `marginal_error` [...]: largest
    difference of a row sum from its target (column sums are exact)."""

    log_plan: Tensor
    marginal_error: Tensor


def transport_plan(cost_BB: Tensor, settings: TransportConfig, sizes_G: Tensor | None = None) -> TransportPlan:
    """The entropic transport plan between B rows and B rows of equal weight: rows scaled to 1, then columns to 1, repeated.

    The plan tends to the minimum of <P, D> + epsilon * sum of P (log P - 1) over all P whose rows and columns sum to 1: B times
    the plan of marginals 1 / B. Computed in logarithms, so that no epsilon and no cost underflows a row.

    Args:
        cost_BB: cost D of moving row i to row j, [B, B], finite; half precision is widened to float32. [G, B, B]: one plan for
            each of G costs.
        settings: epsilon, the weight of the entropy in the unit of the cost (a large epsilon spreads every row over all rows, a
            small one matches rows); iterations, the most pairs of scalings; tolerance, the row error below which a plan stops.
        sizes_G: rows and columns that count in each of G plans, [G]; the rest is padding, each padding row matched with itself.

    Returns:
        The plan, [B, B] or [G, B, B], and its marginal error, [] or [G].

    Raises:
        ValueError: the cost is not square.

    Example: for a cost of [[0, 1], [1, 0]] the diagonal holds 1 / (1 + exp(-1 / epsilon)).
        >>> found = transport_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), TransportConfig(epsilon=1.0))
        >>> [[round(value, 4) for value in row] for row in found.log_plan.exp().tolist()], round(found.marginal_error.item(), 4)
        ([[0.7311, 0.2689], [0.2689, 0.7311]], 0.0)

    Source: Cuturi, Sinkhorn distances, arXiv:1306.0895; marginals and order as in SinKD, arXiv:2402.17110.
    """
    if cost_BB.dim() not in (2, 3) or cost_BB.shape[-2] != cost_BB.shape[-1]:
        raise ValueError(
            f"the cost between the rows of one group is [B, B], got {tuple(cost_BB.shape)}; give student and teacher the same "
            "number of rows"
        )
    log_plan, tolerance = -wide(cost_BB) / settings.epsilon, settings.tolerance
    if sizes_G is not None:
        log_plan = _padding_to_itself(log_plan, sizes_G)
    ones, settled = log_plan.new_ones(log_plan.shape[:-1]), None
    for _ in range(settings.iterations):
        scaled = log_plan - log_plan.logsumexp(-1, keepdim=True)
        scaled = scaled - scaled.logsumexp(-2, keepdim=True)
        # A plan within the tolerance stays as it is while other plans continue.
        log_plan = scaled if settled is None else torch.where(settled[..., None, None], log_plan, scaled)
        if tolerance is not None:
            settled = _row_error(log_plan, ones) < tolerance
            if bool(settled.all()):
                break
    return TransportPlan(log_plan, _row_error(log_plan, ones))


def _padding_to_itself(log_plan: Tensor, sizes_G: Tensor) -> Tensor:
    index = torch.arange(log_plan.shape[-1], device=log_plan.device)
    padding_GB = index >= sizes_G[:, None]
    outside = padding_GB[:, :, None] | padding_GB[:, None, :]
    itself = index[:, None] == index
    return log_plan.masked_fill(outside & ~itself, -torch.inf).masked_fill(outside & itself, 0.0)


def sinkhorn(student_NC: Tensor, teacher: Teacher, **options: Any) -> Tensor:
    """Sinkhorn distance <P, D> between the N rows of the student and the N rows of the teacher, taken as one group.

    D holds the distances between rows, P is the `transport_plan`. **The order of the rows does not matter:** a student whose
    rows are the teacher's in another order has the loss of an equal student. So pair this loss with a term for each row (a KL,
    or cross-entropy), as the objective does by default. At equality the loss is not 0, since the entropy still mixes rows,
    unless `debias` is set.

    Args:
        student_NC: log-probabilities of the student, [N, C], nats; or [N], its numbers in a regression.
        teacher: log-probabilities, [N, C]; labels, [N], int64; numbers, [N]; or (token ids, log-probabilities), both [N, K],
            the teacher's likeliest tokens, with one class for all others.
        options: fields of `config.divergences.TransportConfig`. cost: distance between two rows, l1 (at most 2) or l2; of
            numbers, their absolute difference. epsilon, iterations, tolerance: of `transport_plan`. gradient: unrolled follows
            every iteration, and is the gradient of the returned value; envelope holds the plan fixed, and at convergence is the
            gradient of <P, D> + epsilon * sum of P (log P - 1), the returned value plus the entropy term. debias: subtract half
            of the student's distance to itself and half of the teacher's, row by row, so that equal groups, in any order, have
            0; needs the teacher's full rows. scale: factor of every row.

    Returns:
        [N]: row i is scale * sum over j of P_ij D_ij. Their sum is the group's loss: not negative, in the unit of the cost.

    Raises:
        ValueError: student and teacher differ in rows, an option is unknown or out of range, or the teacher does not suit the
            cost or debias.

    Example: distant rows are matched in any order.
        >>> rows = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
        >>> [round(sinkhorn(rows, teacher, epsilon=0.5).sum().item(), 4) for teacher in (rows, rows.flip(0))]
        [0.1253, 0.1253]
        >>> sinkhorn(rows, rows, epsilon=0.5, debias=True).sum().item()
        0.0

    Source: Cui et al., SinKD, arXiv:2402.17110, batch-wise; debiased, Feydy et al., arXiv:1810.08278.
    """
    return _of_groups([student_NC], [teacher], TransportConfig.parse(**options)).distance_N


def grouped_sinkhorn(student_NV: Tensor, teacher: Teacher, group_N: Tensor, settings: TransportConfig) -> Moved:
    """`sinkhorn` of each group of rows separately: for decoders, whose groups are loss tokens of one sequence.

    Args:
        student_NV: log-probabilities of the student, [N, V], nats.
        teacher: as in `sinkhorn`: the full vocabulary, or the teacher's likeliest tokens. The cost of a group of B tokens takes
            B * B * V operations over the full vocabulary and B * B * K over the top K; keep groups below a few hundred tokens.
        group_N: the group of each row, [N], int64; the rows of a group are adjacent.
        settings: the options of `sinkhorn`.

    Returns:
        [N] and [N]: the rows of `sinkhorn` for each group, and the marginal error of its plan.

    Raises:
        ValueError: the rows of a group are not adjacent, `group_N` has another length, or as in `sinkhorn`.

    Example: the second group is matched across its rows; a group of one row has the distance of that row.
        >>> student, teacher = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]).log(), torch.tensor([0, 1, 0])
        >>> grouped_sinkhorn(student, teacher, torch.tensor([7, 8, 8]), TransportConfig(epsilon=0.01)).distance_N.tolist()
        [1.0, 0.0, 0.0]

    Source: the batch-wise loss of SinKD, arXiv:2402.17110, over groups of tokens.
    """
    names, counts = torch.unique_consecutive(group_N, return_counts=True)
    if len(group_N) != len(student_NV) or len(names.unique()) != len(names):
        raise ValueError(
            f"{len(student_NV)} rows have {len(group_N)} group indices, of {len(names.unique())} groups in {len(names)} runs; "
            "give every row a group index, and make the rows of a group adjacent"
        )
    sizes = counts.tolist()
    if not sizes:
        return Moved(student_NV.sum(-1), student_NV.sum(-1).detach())
    whole = isinstance(teacher, Tensor)
    pieces = teacher.split(sizes) if whole else zip(*(table.split(sizes) for table in teacher), strict=True)
    return _of_groups(list(student_NV.split(sizes)), list(pieces), settings)


def _of_groups(students: list[Tensor], teachers: list[Teacher], settings: TransportConfig) -> Moved:
    """`sinkhorn` of each pair, in order: each cost by itself, all plans together."""
    complete = [teacher for teacher in teachers if not isinstance(teacher, tuple)]
    if settings.debias and len(complete) < len(teachers):
        raise ValueError("debias needs distances between teacher rows, which the top K do not give; take the full vocabulary")
    found = _between(students, teachers, settings)
    distance_N = found.distance_N
    if settings.debias:
        student_to_itself = _between(students, [*students], settings).distance_N
        teacher_to_itself = _between(complete, [*complete], settings).distance_N
        distance_N = distance_N - (student_to_itself + teacher_to_itself) / 2
    return Moved(settings.scale * distance_N, found.marginal_error_N)


def _between(left: list[Tensor], right: list[Teacher], settings: TransportConfig) -> Moved:
    """The transport of each pair of groups, without scale."""
    costs = [
        top_k_cost(a, *b, norm=settings.cost) if isinstance(b, tuple) else pairwise_cost(a, b, norm=settings.cost)
        for a, b in zip(left, right, strict=True)
    ]
    sizes_G = torch.tensor([len(rows) for rows in left], device=costs[0].device) if len(costs) > 1 else None
    cost_GBB = costs[0] if sizes_G is None else _padded(costs)
    found = transport_plan(cost_GBB.detach() if settings.gradient == "envelope" else cost_GBB, settings, sizes_G)
    moved_GB = (found.log_plan.exp() * cost_GBB).sum(-1)
    error_GB = found.marginal_error[..., None].expand_as(moved_GB)
    if sizes_G is None:
        return Moved(moved_GB, error_GB)
    real_GB = torch.arange(moved_GB.shape[1], device=sizes_G.device) < sizes_G[:, None]
    return Moved(moved_GB[real_GB], error_GB[real_GB])


def _padded(costs: list[Tensor]) -> Tensor:
    """[G, B, B] of zeros beyond each cost's own rows and columns."""
    missing = [max(map(len, costs)) - len(table) for table in costs]
    return torch.stack([torch.nn.functional.pad(table, (0, n, 0, n)) for table, n in zip(costs, missing, strict=True)])


def sinkhorn_sample_wise(student_NC: Tensor, teacher_NC: Tensor, class_cost_CC: Tensor | None = None, **options: Any) -> Tensor:
    """Sinkhorn distance of each row's two distributions over a cost between classes: SinKD's ablation, for few classes.

    Args:
        student_NC: log-probabilities of the student, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher, the same shape.
        class_cost_CC: cost of moving probability from class i to class j, [C, C]. None: 0 on the diagonal and 1 elsewhere, for
            which the distance tends to `total_variation` as epsilon tends to 0.
        options: epsilon, iterations, tolerance and scale of `config.divergences.TransportConfig`; the rows and columns of the
            plan sum to the two distributions.

    Returns:
        [N], in the unit of the cost; gradients follow every iteration. Not 0 at equality. Rows are independent.

    Raises:
        ValueError: the shapes differ, an option is unknown or out of range, or there are more than 4,096 classes, since each
            row takes C * C numbers.

    Example: half of the mass has to move.
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
        >>> round(sinkhorn_sample_wise(student, teacher).item(), 4)
        0.5

    Source: Cui et al., SinKD, arXiv:2402.17110, the sample-wise ablation.
    """
    same_shape(student_NC, teacher_NC)
    settings = TransportConfig.parse(**options)
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
        log_plan = _class_log_plan(student, teacher, cost_CC / settings.epsilon, settings)
        return (log_plan.exp() * cost_CC).sum((1, 2))

    rows = max(1, ELEMENTS // classes**2)
    pieces = list(zip(student_NC.split(rows), teacher_NC.split(rows), strict=True))
    return settings.scale * torch.cat([recomputed(moved, *piece, alone=len(pieces) == 1) for piece in pieces])


def _class_log_plan(student_NC: Tensor, teacher_NC: Tensor, exponent_CC: Tensor, settings: TransportConfig) -> Tensor:
    """Plans whose rows sum to one distribution and columns to the other, [N, C, C]; a class may have no mass."""
    rows, columns = wide(student_NC)[:, :, None], wide(teacher_NC)[:, None, :]
    right, log_plan = torch.zeros_like(columns), -exponent_CC
    for _ in range(settings.iterations):
        # Potentials instead of scaling the plan in place: a row without mass would be -inf minus its own sum of -inf.
        left = rows - (right - exponent_CC).logsumexp(2, keepdim=True)
        right = columns - (left - exponent_CC).logsumexp(1, keepdim=True)
        log_plan = left + right - exponent_CC
        if settings.tolerance is not None and bool((_row_error(log_plan, rows[:, :, 0].exp()) < settings.tolerance).all()):
            break
    return log_plan


@torch.no_grad()
def _row_error(log_plan: Tensor, target: Tensor) -> Tensor:
    """Largest difference of a row sum from its target, for each plan."""
    gaps = (log_plan.exp().sum(-1) - target).abs()
    return gaps.amax(-1) if gaps.shape[-1] else gaps.sum(-1)
