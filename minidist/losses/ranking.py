"""Ranking: a pairwise loss that makes the student order the answers to one prompt as the teacher does."""

from typing import Literal

import torch
from torch import Tensor

from minidist.config.objectives import RankingConfig

Link = Literal["reverse_kl", "forward_kl", "jsd", "alpha"]


def ranking_loss(student_BG: Tensor, teacher_BG: Tensor, lengths_BG: Tensor, *, f: Link, beta: float, alpha: float) -> Tensor:
    """Mean of -log sigmoid(beta * (f'(u_w) - f'(u_l))) over a prompt's pairs (w, l) of answers where the teacher prefers w.

    u is the geometric mean of the student's token probabilities of an answer; the teacher prefers the answer with the larger
    geometric mean under the teacher.

    Args:
        student_BG, teacher_BG: log-probabilities of G whole answers to each of B prompts, [B, G], nats; the teacher's get no
            gradient.
        lengths_BG: tokens of each answer, above 0.
        f: divergence whose derivative f' enters the sigmoid: log u (reverse_kl, as in DPO), -1 / u (forward_kl),
            log(2 u / (1 + u)) (jsd), or (1 - u^-alpha) / alpha (alpha), without constants.
        beta: slope of the sigmoid, above 0. alpha: of f alpha, between 0 (reverse_kl) and 1 (forward_kl), both excluded.

    Returns:
        [B], nats; 0 for a prompt whose answers are all equally likely under the teacher.

    Raises:
        ValueError: beta or alpha is out of range, or the shapes differ.

    Example: the student prefers the answer that is less likely under the teacher.
        >>> student, teacher = torch.tensor([[-2.0, -4.0]]), torch.tensor([[-3.0, -1.0]])
        >>> round(ranking_loss(student, teacher, torch.tensor([[2, 2]]), f="reverse_kl", beta=1.0, alpha=0.5).item(), 4)
        1.3133

    Source: Wang et al., f-DPO, arXiv:2309.16240, table 1, with a uniform reference; means as in Meng et al., arXiv:2405.14734.
    """
    RankingConfig.parse(f=f, beta=beta, alpha=alpha)
    if not student_BG.shape == teacher_BG.shape == lengths_BG.shape:
        raise ValueError("student, teacher and lengths of ranking need the same shape: prompts by answers")
    log_u_BG, teacher_BG = student_BG / lengths_BG, (teacher_BG / lengths_BG).detach()
    slope_BG = {
        "reverse_kl": lambda: log_u_BG,
        "forward_kl": lambda: -torch.exp(-log_u_BG),
        "jsd": lambda: log_u_BG - torch.nn.functional.softplus(log_u_BG),
        "alpha": lambda: -torch.exp(-alpha * log_u_BG) / alpha,
    }[f]()
    preferred_BGG = _preferred(teacher_BG).to(log_u_BG)
    pairs_BGG = -torch.nn.functional.logsigmoid(beta * (slope_BG[:, :, None] - slope_BG[:, None, :]))
    return (preferred_BGG * pairs_BGG).sum((1, 2)) / preferred_BGG.sum((1, 2)).clamp(min=1)


def agreement(student_BG: Tensor, teacher_BG: Tensor, lengths_BG: Tensor) -> Tensor:
    """Share of pairs in which student and teacher prefer the same answer, []; one half by chance."""
    preferred = _preferred(teacher_BG / lengths_BG)
    return (preferred & _preferred(student_BG / lengths_BG)).sum() / preferred.sum().clamp(min=1)


def _preferred(scores_BG: Tensor) -> Tensor:
    """[B, G, G] bool: whether answer i scores above answer j."""
    return scores_BG[:, :, None] > scores_BG[:, None, :]
