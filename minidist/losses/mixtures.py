"""Divergences from a mixture m of the two distributions. Where either has mass m has mass, so all of them are finite.

[N, C] and [N, C] log-probabilities to [N], nats. p is the teacher, q the student. Gradients flow through m unless stated.
Ranges and defaults of the options stand in `config.divergences`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from minidist.config.divergences import JSDConfig, JSDNormalisedConfig, SkewForwardKLConfig, SkewReverseKLConfig
from minidist.losses.divergences import expected_log_ratio, forward_kl, reverse_kl, same_shape


def jsd(student_NC: Tensor, teacher_NC: Tensor, *, beta: float, endpoint: Literal["refuse", "kl"] = "refuse") -> Tensor:
    """Generalised Jensen-Shannon divergence beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

    Args:
        student_NC: log-probabilities of the student q, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher p, the same shape.
        beta: weight of the teacher, between 0 and 1, both excluded. Near equality the divergence is beta (1 - beta) KL, which
            vanishes towards both ends; `jsd_normalised` does not.
        endpoint: kl accepts beta = 0 (the forward KL) and beta = 1 (the reverse KL), as other libraries do: jumps, not limits.

    Returns:
        [N], nats, from 0 (equal) to the entropy of a Bernoulli(beta) variable (disjoint; log 2 at 0.5). The gradient in the
        student's logits is (1 - beta) q * (log(q / m) - KL(q || m)).

    Raises:
        ValueError: beta is out of range, or the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
        >>> round(jsd(student, teacher, beta=0.5).item(), 4)
        0.2158

    Source: Agarwal et al., GKD, arXiv:2306.13649, equation 1.
    """
    JSDConfig.parse(beta=beta, endpoint=endpoint)
    if beta in (0, 1):
        return (reverse_kl if beta else forward_kl)(student_NC, teacher_NC)
    same_shape(student_NC, teacher_NC)
    mixture_NC = log_mixture(teacher_NC, student_NC, beta)
    return beta * expected_log_ratio(teacher_NC, mixture_NC) + (1 - beta) * expected_log_ratio(student_NC, mixture_NC)


def jsd_normalised(student_NC: Tensor, teacher_NC: Tensor, *, beta: float) -> Tensor:
    """`jsd` / (beta (1 - beta)): from the forward KL at beta = 0 to the reverse KL at beta = 1 without a jump.

    Args:
        student_NC: log-probabilities of the student q, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher p, the same shape.
        beta: weight of the teacher in the mixture, from 0 to 1.

    Returns:
        [N], nats, not negative; about the KL near equality, whatever beta.

    Raises:
        ValueError: beta is out of range, or the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
        >>> round(jsd_normalised(student, teacher, beta=0.5).item(), 4)
        0.863

    Source: the divergence of Agarwal et al., arXiv:2306.13649, divided by its limit near equality.
    """
    JSDNormalisedConfig.parse(beta=beta)
    if beta in (0, 1):
        return (reverse_kl if beta else forward_kl)(student_NC, teacher_NC)
    same_shape(student_NC, teacher_NC)
    # Each term is divided by its own weight. Dividing their sum by beta (1 - beta) would amplify rounding errors near the ends.
    of_teacher_NC = teacher_NC.exp() * _log_over_mixture(teacher_NC, student_NC, 1 - beta)
    of_student_NC = student_NC.exp() * _log_over_mixture(student_NC, teacher_NC, beta)
    return of_teacher_NC.sum(-1) / (1 - beta) + of_student_NC.sum(-1) / beta


def skew_forward_kl(student_NC: Tensor, teacher_NC: Tensor, *, alpha: float) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q) of each row.

    Args:
        student_NC: log-probabilities of the student q, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher p, the same shape.
        alpha: share of the teacher in the mixture, from 0 (the forward KL) to below 1.

    Returns:
        [N], nats, from 0 to -log alpha. The gradient in the student's logits is -(1 - alpha) q * (p / m - <q, p / m>), no entry
        larger than q (1 - alpha) / alpha.

    Raises:
        ValueError: alpha is out of range, or the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0]]).log()
        >>> round(skew_forward_kl(student, teacher, alpha=0.1).item(), 4)
        2.3026

    Source: Ko et al., DistiLLM, arXiv:2402.03898, section 3.1.
    """
    SkewForwardKLConfig.parse(alpha=alpha)
    same_shape(student_NC, teacher_NC)
    return expected_log_ratio(teacher_NC, log_mixture(teacher_NC, student_NC, alpha))


def skew_reverse_kl(student_NC: Tensor, teacher_NC: Tensor, *, alpha: float, detach_mixture: bool = False) -> Tensor:
    """KL(q || (1 - alpha) p + alpha q) of each row.

    Args:
        student_NC: log-probabilities of the student q, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher p, the same shape.
        alpha: share of the student in the mixture, from 0 (the reverse KL) to below 1.
        detach_mixture: pass no gradient through the mixture, as DistiLLM-2's code does; DistiLLM does not.

    Returns:
        [N], nats, from 0 to -log alpha. The gradient in the student's logits is q * (u - <q, u>), u = log(q / m) - alpha q / m;
        with the mixture detached u = log(q / m).

    Raises:
        ValueError: alpha is out of range, or the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0]]).log()
        >>> round(skew_reverse_kl(student, teacher, alpha=0.1).item(), 4)
        2.3026

    Source: Ko et al., DistiLLM, arXiv:2402.03898, section 3.1; detached, Ko et al., DistiLLM-2, arXiv:2503.07067.
    """
    SkewReverseKLConfig.parse(alpha=alpha)
    same_shape(student_NC, teacher_NC)
    mixture_NC = log_mixture(student_NC, teacher_NC, alpha)
    return expected_log_ratio(student_NC, mixture_NC.detach() if detach_mixture else mixture_NC)


def log_mixture(first_NC: Tensor, second_NC: Tensor, share: float) -> Tensor:
    """log(share * exp(first) + (1 - share) * exp(second)), [N, C]; -inf, without gradient, where both are."""
    absent_NC = torch.isneginf(first_NC) & torch.isneginf(second_NC)
    weighted = ((first_NC, share), (second_NC, 1 - share))
    parts = [table.masked_fill(absent_NC, 0.0) + math.log(weight) for table, weight in weighted if weight]
    mixture_NC = parts[0] if len(parts) == 1 else torch.logaddexp(*parts)
    return mixture_NC.masked_fill(absent_NC, -math.inf)


def _log_over_mixture(first_NC: Tensor, second_NC: Tensor, share: float) -> Tensor:
    """log(exp(first) / ((1 - share) exp(first) + share exp(second))), [N, C], exact for any share; 0, without gradient, where
    `first` is -inf."""
    gap_NC = (second_NC - first_NC).masked_fill(torch.isneginf(first_NC), 0.0)
    return -torch.logaddexp(gap_NC + math.log(share), gap_NC.new_tensor(math.log1p(-share)))
