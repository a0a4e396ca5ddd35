"""Divergences between two tables of log-probabilities: [N, C] and [N, C] to [N], in nats.

No mask, no reduction, no temperature: rows are the tokens that count, and the caller sums. Axes: N loss tokens, C classes.
Where a distribution gives a class no probability (log-probability -inf), 0 * log 0 is 0, in value and gradient. If the other
distribution allows that class, the divergence is large, not infinite: see EXCLUDED.
"""

import math
from typing import Any

import torch
from torch import Tensor

EXCLUDED = math.log(2.0**-149)
"""Value used for a log-probability of -inf: the logarithm of the least probability float32 can hold, -103.3 nats."""


def forward_kl(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """KL(teacher || student) of each row: sum over classes of p * (log p - log q), p the teacher, q the student.

    Args:
        student_NC: log-probabilities of the student, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher, the same shape.

    Returns:
        [N], nats, not negative; zero where the rows are equal; up to 103.3 where the student excludes a class that the
        teacher allows. With q the softmax of the student's logits the gradient in the logits is q - p.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.9, 0.05, 0.05]]).log()
        >>> round(forward_kl(student, teacher).item(), 4)
        0.3904

    Source: Kullback & Leibler (1951); as distillation loss, Hinton, Vinyals & Dean, arXiv:1503.02531.
    """
    same_shape(student_NC, teacher_NC)
    return expected_log_ratio(teacher_NC, student_NC)


def reverse_kl(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """KL(student || teacher) of each row: sum over classes of q * (log q - log p), p the teacher, q the student.

    Args:
        student_NC: log-probabilities of the student, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher, the same shape.

    Returns:
        [N], nats, not negative; zero where the rows are equal; up to 103.3 where the teacher excludes a class that the
        student allows. With q the softmax of the student's logits the gradient in the logits is
        q * (log q - log p - KL).

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.9, 0.05, 0.05]]).log()
        >>> round(reverse_kl(student, teacher).item(), 4)
        0.6072

    Source: as distillation objective, Gu, Dong, Wei & Huang, MiniLLM, arXiv:2306.08543, eq. 1 and the single step of eq. 3.
    """
    same_shape(student_NC, teacher_NC)
    return expected_log_ratio(student_NC, teacher_NC)


def jeffreys(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """KL(teacher || student) + KL(student || teacher) of each row: sum over classes of (p - q) * (log p - log q).

    Args:
        student_NC: log-probabilities of the student q, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher p, the same shape.

    Returns:
        [N], nats, not negative; zero where the rows are equal; up to 206.6 where either excludes a class that the
        other allows. The gradient in the student's logits is the sum of both KLs' gradients.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.9, 0.05, 0.05]]).log()
        >>> round(jeffreys(student, teacher).item(), 4)
        0.9976

    Source: Jeffreys, An invariant form for the prior probability in estimation problems (1946).
    """
    return forward_kl(student_NC, teacher_NC) + reverse_kl(student_NC, teacher_NC)


def total_variation(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Half the sum over classes of |p - q| of each row: the largest difference in probability of any event.

    Args:
        student_NC: log-probabilities of the student q, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher p, the same shape.

    Returns:
        [N], from 0 (equal) to 1 (disjoint); its square is at most half of either KL (Pinsker). With q the softmax of
        the student's logits and s = sign(q - p) / 2, the gradient in the logits is q * (s - <q, s>); 0 where p = q.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.9, 0.05, 0.05]]).log()
        >>> round(total_variation(student, teacher).item(), 4)
        0.4

    Source: as distillation objective, Wen et al., f-DISTILL, arXiv:2307.15190, section 3.2.
    """
    same_shape(student_NC, teacher_NC)
    return (student_NC.exp() - teacher_NC.exp()).abs().sum(-1) / 2


def expected_log_ratio(weight_NC: Tensor, other_NC: Tensor) -> Tensor:
    """Sum over classes of exp(a) * (a - b), [N]; a class with a = -inf contributes nothing, also to the gradient."""
    found_N = _ExpectedLogRatio.apply(weight_NC, other_NC)
    # Log-probabilities of -inf are rare, and a search for them costs more than the sum.
    return found_N if bool(found_N.isfinite().all()) else log_ratio_terms(weight_NC, other_NC).sum(-1)


class _ExpectedLogRatio(torch.autograd.Function):
    """Sum over classes of exp(a) * (a - b), where both are finite. The slopes are exp(a) * (a - b + 1) in a, and -exp(a) in b.

    Elementwise work on [N, C] waits for memory: this takes half the passes that the formula's own graph takes.
    """

    @staticmethod
    def forward(ctx: Any, weight_NC: Tensor, other_NC: Tensor) -> Tensor:
        mass_NC = weight_NC.exp()
        term_NC = (weight_NC - other_NC).mul_(mass_NC)
        ctx.save_for_backward(weight_NC, other_NC, mass_NC, term_NC)
        return term_NC.sum(-1)

    @staticmethod
    def backward(ctx: Any, outer_N: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight_NC, other_NC, mass_NC, term_NC = ctx.saved_tensors
        of_weight, of_other = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the slopes are differentiated again
            mass_NC = weight_NC.exp()
            slopes = mass_NC * (weight_NC - other_NC + 1) * outer_N[:, None], -mass_NC * outer_N[:, None]
            return slopes[0] if of_weight else None, slopes[1] if of_other else None
        slope_NC = (mass_NC + term_NC).mul_(outer_N[:, None]) if of_weight else None
        return slope_NC, mass_NC * -outer_N[:, None] if of_other else None


def log_ratio_terms(weight_NC: Tensor, other_NC: Tensor) -> Tensor:
    """exp(a) * (a - b) of each class, 0 where a is -inf; where only b is -inf, b counts as EXCLUDED."""
    absent_NC = torch.isneginf(weight_NC)
    # The values are replaced before the arithmetic: masking the result would leave 0 * inf = nan in the gradient.
    weight_NC = weight_NC.masked_fill(absent_NC, 0.0)
    other_NC = other_NC.masked_fill(absent_NC, 0.0).masked_fill(torch.isneginf(other_NC) & ~absent_NC, EXCLUDED)
    return (weight_NC.exp() * (weight_NC - other_NC)).masked_fill(absent_NC, 0.0)


def same_shape(student_NC: Tensor, teacher_NC: Tensor) -> None:
    if student_NC.shape != teacher_NC.shape:
        raise ValueError(
            f"student and teacher need the same shape, got {tuple(student_NC.shape)} and {tuple(teacher_NC.shape)}; "
            "slice padded vocabularies before the softmax"
        )
