"""Answers to one prompt in the teacher's order: a pairwise loss on the student's log-probabilities of whole answers."""

from typing import Literal

import torch
from torch import Tensor

Link = Literal["reverse_kl", "forward_kl", "jsd", "alpha"]


def ranking_loss(
    student_BG: Tensor,
    teacher_BG: Tensor,
    lengths_BG: Tensor,
    *,
    f: Link = "reverse_kl",
    beta: float = 2.0,
    alpha: float = 0.5,
) -> Tensor:
    """Mean of -log sigmoid(beta * (f'(u_w) - f'(u_l))) over a prompt's pairs of answers, w the one the teacher prefers.

    u is the student's probability of a token of the answer, in the geometric mean; the teacher prefers by the same mean.

    Args:
        student_BG, teacher_BG: log-probabilities of G whole answers to B prompts, [B, G], nats; the teacher's are fixed.
        lengths_BG: tokens of each answer, above 0.
        f: whose derivative stands before the sigmoid: log u (reverse_kl, as in DPO), -1 / u (forward_kl), log(2 u / (1 + u))
            (jsd), or (1 - u^-alpha) / alpha (alpha), constants left away.
        beta: slope of the sigmoid. alpha: between 0 (reverse_kl) and 1 (forward_kl), both excluded.

    Returns:
        [B], nats; 0 for a prompt none of whose answers the teacher prefers.

    Raises:
        ValueError: beta or alpha out of range, or other shapes.

    Example: the student prefers the answer that the teacher finds less likely.
        >>> student, teacher = torch.tensor([[-2.0, -4.0]]), torch.tensor([[-3.0, -1.0]])
        >>> round(ranking_loss(student, teacher, torch.tensor([[2, 2]]), beta=1.0).item(), 4)
        1.3133

    Source: Wang et al., f-DPO, arXiv:2309.16240, table 1, with a uniform reference; means as in Meng et al., arXiv:2405.14734.
    """
    if not beta > 0 or not 0 < alpha < 1:
        raise ValueError(f"beta and alpha of ranking are {beta} and {alpha}; beta is above 0, alpha between 0 and 1")
    if not student_BG.shape == teacher_BG.shape == lengths_BG.shape:
        raise ValueError("student, teacher and lengths of ranking need the same shape: prompts by answers")
    own, theirs = student_BG / lengths_BG, (teacher_BG / lengths_BG).detach()
    linked = {
        "reverse_kl": lambda: own,
        "forward_kl": lambda: -torch.exp(-own),
        "jsd": lambda: own - torch.nn.functional.softplus(own),
        "alpha": lambda: -torch.exp(-alpha * own) / alpha,
    }[f]()
    preferred_BGG = (theirs[:, :, None] > theirs[:, None, :]).to(own)
    pairs_BGG = -torch.nn.functional.logsigmoid(beta * (linked[:, :, None] - linked[:, None, :]))
    return (preferred_BGG * pairs_BGG).sum((1, 2)) / preferred_BGG.sum((1, 2)).clamp(min=1)


def agreement(student_BG: Tensor, teacher_BG: Tensor, lengths_BG: Tensor) -> Tensor:
    """Share of all pairs of which student and teacher prefer the same, []; one half by chance."""
    own, theirs = student_BG / lengths_BG, teacher_BG / lengths_BG
    preferred = theirs[:, :, None] > theirs[:, None, :]
    return (preferred & (own[:, :, None] > own[:, None, :])).sum() / preferred.sum().clamp(min=1)
