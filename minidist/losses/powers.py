"""The alpha-beta family, of which both KLs, Hellinger's distance and the squared distance are members."""

import torch
from torch import Tensor

from minidist.config.divergences import AlphaBetaConfig
from minidist.losses.divergences import same_shape

FLOOR = -80.0
"""Least log-probability that enters a power or a limit: exp(80) is close to the largest float32."""


def alpha_beta(student_NC: Tensor, teacher_NC: Tensor, *, alpha: float, beta: float) -> Tensor:
    """-1 / (a b) sum [p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b)] of each row; limits where a, b or a + b is 0.

    Args:
        student_NC: log-probabilities of the student q, [N, C], nats, each row summing to one in probability.
        teacher_NC: log-probabilities of the teacher p, the same shape.
        alpha, beta: exponents from -1 to 2, their sum not negative. (1, 0) is the forward KL, (0, 1) the reverse KL
            (log-probabilities below -80 count as -80), (0.5, 0.5) four times Hellinger's squared distance, (1, 1) half the
            squared distance; a + b = 1 are the alpha-divergences. The paper uses (0.2, 0.7) for GPT-2.

    Returns:
        [N], not negative; zero where the rows are equal. Where a, b and a + b are not 0, with
        h = -(p^a q^b - q^(a + b)) / a, the gradient in the student's logits is h - q sum(h).

    Raises:
        ValueError: the exponents are out of range, or the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.9, 0.05, 0.05]]).log()
        >>> round(alpha_beta(student, teacher, alpha=1.0, beta=1.0).item(), 4)
        0.1425

    Source: Wang et al., ABKD, arXiv:2505.04560, definition 3; Cichocki, Cruces & Amari (2011), equations 19 to 23.
    """
    same_shape(student_NC, teacher_NC)
    AlphaBetaConfig.parse(alpha=alpha, beta=beta)
    q, p = student_NC.clamp(min=FLOOR), teacher_NC.clamp(min=FLOOR)
    total = alpha + beta
    if alpha == 0 and beta == 0:
        terms_NC = (p - q).square() / 2
    elif alpha == 0:
        terms_NC = _one_sided(q, p, beta)
    elif beta == 0:
        terms_NC = _one_sided(p, q, alpha)
    elif total == 0:
        gap = alpha * (q - p)
        terms_NC = (gap + torch.expm1(-gap)) / alpha**2
    else:
        student, teacher = (total * q).exp(), (total * p).exp()
        terms_NC = -((alpha * p + beta * q).exp() - alpha / total * teacher - beta / total * student) / (alpha * beta)
    return terms_NC.sum(-1)


def _one_sided(first: Tensor, second: Tensor, power: float) -> Tensor:
    """(f^a log(f^a / s^a) - f^a + s^a) / a^2 of two tables of logarithms."""
    first_power, second_power = (power * first).exp(), (power * second).exp()
    return (first_power * power * (first - second) - first_power + second_power) / power**2
