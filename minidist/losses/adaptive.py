"""Forward and reverse KL with weights that depend on the token or on the class. No gradient passes through a weight.

[N, C] and [N, C] log-probabilities to [N], nats. p is the teacher, q the student. Ranges and defaults of the options stand in
`config.divergences`.
"""

from typing import Literal

import torch
from torch import Tensor

from minidist.config.divergences import AKLConfig, EntropyGatedConfig
from minidist.losses.costs import running_sum
from minidist.losses.divergences import expected_log_ratio, forward_kl, log_ratio_terms, reverse_kl, same_shape

HeadRule = Literal["released", "paper"]
_TOP = 64
"""Classes that are sorted at first; all are, in the rare case that the head is longer."""


def akl(student_NC: Tensor, teacher_NC: Tensor, *, mu: float, head_rule: HeadRule) -> Tensor:
    """Adaptive KL: w KL(p || q) + (1 - w) KL(q || p), w the share of |p - q| that lies in the teacher's head.

    The head holds the teacher's likeliest classes: the longest prefix with at most `mu` of the mass, at least one class
    (released, the authors' code), or the shortest with at least `mu` (paper).

    Args:
        student_NC: log-probabilities of the student q, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher p, the same shape.
        mu: mass of the head, above 0, at most 1 (then, under released, the forward KL).
        head_rule: released or paper. Equally likely classes keep their order.

    Returns:
        [N], nats, not negative; 0 with gradient 0 where the rows are equal (w is one half). The gradient in the
        student's logits is w (q - p) + (1 - w) q (log(q / p) - KL(q || p)).

    Raises:
        ValueError: mu is out of range, or the shapes differ.

    Example: under paper the head holds |0.4 - 0.25| + |0.3 - 0.25| of 0.4. Under released, without the class that crosses mu,
    the head holds 0.15 of 0.4, which gives 0.375 * 0.1064 + 0.625 * 0.1218 nats.
        >>> student, teacher = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log(), torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
        >>> [round(head_share(student, teacher, mu=0.5, head_rule=rule).item(), 3) for rule in ("released", "paper")]
        [0.375, 0.5]
        >>> round(akl(student, teacher, mu=0.5, head_rule="released").item(), 4)
        0.116

    Source: Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation, arXiv:2404.02657, section 4.
    """
    AKLConfig.parse(mu=mu)
    share_N = head_share(student_NC, teacher_NC, mu=mu, head_rule=head_rule)
    return share_N * forward_kl(student_NC, teacher_NC) + (1 - share_N) * reverse_kl(student_NC, teacher_NC)


@torch.no_grad()
def head_share(student_NC: Tensor, teacher_NC: Tensor, *, mu: float, head_rule: HeadRule, top: int = _TOP) -> Tensor:
    """Weight of the forward KL in `akl`, [N], from 0 to 1. `top`: classes sorted at first; all are if the head is longer."""
    same_shape(student_NC, teacher_NC)
    gap_NC = (teacher_NC.exp() - student_NC.exp()).abs()
    classes = teacher_NC.shape[-1]
    if top < classes:
        order_NK = teacher_NC.topk(top, -1).indices.sort(-1).values  # ties are back in their original order
        sorted_NK, inner_NK = teacher_NC.gather(-1, order_NK).sort(stable=True, dim=-1, descending=True)
        order_NK = order_NK.gather(-1, inner_NK)
    else:
        sorted_NK, order_NK = teacher_NC.sort(stable=True, dim=-1, descending=True)
    mass_NK = running_sum(sorted_NK.exp())
    if head_rule == "released":
        head_NK = mass_NK <= mu if mu < 1 else torch.ones_like(mass_NK, dtype=torch.bool)  # the whole sum may round above 1
    else:
        head_NK = mass_NK - sorted_NK.exp() < mu
    head_NK[:, 0] = True
    # If the head ends at the last sorted class, or at a tie with it, classes of the head may be missing: sort all.
    last_N1 = sorted_NK.gather(-1, head_NK.sum(-1, keepdim=True) - 1)
    if top < classes and bool((last_N1 == sorted_NK[:, -1:]).any()):
        return head_share(student_NC, teacher_NC, mu=mu, head_rule=head_rule, top=classes)
    head_N = (gap_NC.gather(-1, order_NK) * head_NK).sum(-1)
    whole_N = gap_NC.sum(-1)
    return torch.where(whole_N > 0, (head_N / whole_N.clamp(min=1e-30)).clamp(max=1), 0.5)


def todi(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Token-wise distillation: the forward term of each class weighted by w = p / (p + q), the reverse term by 1 - w.

    The value equals `jeffreys`; only the gradient differs, because w is held fixed. Use `jeffreys` as the control.

    Args:
        student_NC: log-probabilities of the student q, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher p, the same shape.

    Returns:
        [N], nats, not negative. With u = (1 - w) * (log(q / p) + 1) the gradient in the student's logits is
        -w p + q <w, p> + q * (u - <q, u>).

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.9, 0.05, 0.05]]).log()
        >>> round(todi(student, teacher).item(), 4)
        0.9976

    Source: Jung et al., ToDi, arXiv:2505.16297, equation 5.
    """
    same_shape(student_NC, teacher_NC)
    absent_NC = torch.isneginf(student_NC) & torch.isneginf(teacher_NC)
    q, p = (table.masked_fill(absent_NC, 0.0) for table in (student_NC, teacher_NC))
    share_NC = torch.sigmoid(p - q).detach()
    terms_NC = share_NC * log_ratio_terms(p, q) + (1 - share_NC) * log_ratio_terms(q, p)
    return terms_NC.masked_fill(absent_NC, 0.0).sum(-1)


def entropy_gated(student_NC: Tensor, teacher_NC: Tensor, *, threshold: float) -> Tensor:
    """KL(q || p), plus KL(p || q) where the teacher's entropy is above `threshold` nats.

    Args:
        student_NC: log-probabilities of the student q, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher p, the same shape.
        threshold: entropy of the teacher, nats, not negative; from log C on, the reverse KL alone.

    Returns:
        [N], nats, not negative. With g = 1 where the gate is open, else 0, the gradient in the student's logits is
        q * (log(q / p) - KL(q || p)) + g * (q - p). Over the teacher's top K and their tail the entropy is a lower bound, so
        the gate opens less often than over the full vocabulary.

    Raises:
        ValueError: the threshold is negative, or the shapes differ.

    Example: the entropy log 2 is above 0.5 nats, the entropy of a near-certain teacher is not.
        >>> student, teacher = torch.tensor([[0.6, 0.4]] * 2).log(), torch.tensor([[0.5, 0.5], [0.999, 0.001]]).log()
        >>> gated, reverse = entropy_gated(student, teacher, threshold=0.5), reverse_kl(student, teacher)
        >>> (gated > reverse + 1e-6).tolist()
        [True, False]

    Source: Entropy-aware on-policy distillation, arXiv:2603.07079.
    """
    EntropyGatedConfig.parse(threshold=threshold)
    gate_N = -expected_log_ratio(teacher_NC, torch.zeros_like(teacher_NC)) > threshold
    return reverse_kl(student_NC, teacher_NC) + torch.where(gate_N, forward_kl(student_NC, teacher_NC), 0.0)
