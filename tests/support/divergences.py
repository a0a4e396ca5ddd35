"""The divergences with their options, by name, and helpers to take their gradients."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minidist.losses.adaptive import akl, entropy_gated, todi
from minidist.losses.costs import Norm
from minidist.losses.divergences import forward_kl, jeffreys, reverse_kl, total_variation
from minidist.losses.mixtures import jsd, jsd_normalised, skew_forward_kl, skew_reverse_kl
from minidist.losses.powers import alpha_beta

Divergence = Callable[[Tensor, Tensor], Tensor]
INF = math.inf
FAMILY: dict[str, Divergence] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jeffreys": jeffreys,
    "total variation": total_variation,
    "jsd 0.1": partial(jsd, beta=0.1),
    "jsd 0.5": partial(jsd, beta=0.5),
    "jsd normalised 0": partial(jsd_normalised, beta=0),
    "jsd normalised 0.9": partial(jsd_normalised, beta=0.9),
    "skew forward": partial(skew_forward_kl, alpha=0.1),
    "skew reverse": partial(skew_reverse_kl, alpha=0.1),
    "skew reverse detached": partial(skew_reverse_kl, alpha=0.1, detach_mixture=True),
    "akl": partial(akl, mu=0.5, head_rule="released"),
    "akl paper": partial(akl, mu=0.5, head_rule="paper"),
    "todi": todi,
    "gated": partial(entropy_gated, threshold=1.0),
    "alpha beta": partial(alpha_beta, alpha=0.2, beta=0.7),
    "alpha beta 1 1": partial(alpha_beta, alpha=1.0, beta=1.0),
    "alpha beta 0.5 -0.5": partial(alpha_beta, alpha=0.5, beta=-0.5),
    "alpha beta 0 0.5": partial(alpha_beta, alpha=0.0, beta=0.5),
    "alpha beta 0.5 0": partial(alpha_beta, alpha=0.5, beta=0.0),
    "alpha beta 0 0": partial(alpha_beta, alpha=0.0, beta=0.0),
}


def random_logits(rows: int = 6, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student, which requires a gradient, and teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


def random_tables(rows: int = 6, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of student and teacher, without gradient."""
    student, teacher = random_logits(rows, classes, seed)
    return student.detach().log_softmax(-1), teacher.log_softmax(-1)


def gradient(divergence: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    values = divergence(student.log_softmax(-1), teacher.log_softmax(-1))
    return torch.autograd.grad(values.sum(), student)[0]


def centred(q: Tensor, slope: Tensor) -> Tensor:
    """Gradient in the logits of a function with this slope in log q, over q."""
    return q * (slope - (q * slope).sum(-1, keepdim=True))


def plain_cost(student: Tensor, teacher: Tensor, norm: Norm) -> Tensor:
    """[N, M] distances between all rows of two tables, from the definition."""
    gaps = student.exp()[:, None] - teacher.exp()
    return gaps.abs().sum(-1) if norm == "l1" else gaps.square().sum(-1).sqrt()


def slope(call: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Gradient in the logits of a function of their log-probabilities, summed."""
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(call(logits.log_softmax(-1)).sum(), logits)[0]
