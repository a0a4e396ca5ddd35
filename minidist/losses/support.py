"""Classes of a divergence: the full vocabulary, or K listed tokens and one class, the tail, for all others.

Merging classes never raises an f-divergence (data processing inequality), so the divergence over K listed tokens and their tail
is a lower bound of the divergence over the full vocabulary, and equals it at K = V, where there is no tail.
"""

from typing import Literal

import torch
from torch import Tensor

TAIL_FLOOR = 1e-7
"""Least probability of the teacher's tail. It is about the rounding error of a float32 sum near 1: a smaller or negative tail
is rounding noise of the listed values, and its logarithm would be unbounded. Student mass in the tail then costs a reverse KL
at most 16.1 nats."""


def top_k_and_tail(student_NV: Tensor, top_ids_NK: Tensor, top_logprobs_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Student and teacher over the same classes: the K tokens that the teacher lists, and the tail when K < V.

    Args:
        student_NV: log-probabilities of the student, [N, V], nats.
        top_ids_NK: the listed tokens, [N, K], int64, distinct within a row.
        top_logprobs_NK: the teacher's log-probabilities of the listed tokens, [N, K], nats.

    Returns:
        Two tables of log-probabilities, student and teacher, [N, K + 1], or [N, K] when K = V. The student's tail is exact;
        the teacher's is log(1 - sum of the listed probabilities), at least log(TAIL_FLOOR).

    Example:
        >>> student = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> tables = top_k_and_tail(student, torch.tensor([[2]]), torch.tensor([[0.8]]).log())
        >>> [[round(value, 2) for value in table.exp()[0].tolist()] for table in tables]
        [[0.25, 0.75], [0.8, 0.2]]
    """
    listed_NK = student_NV.gather(-1, top_ids_NK)
    if top_ids_NK.shape[-1] == student_NV.shape[-1]:
        return listed_NK, top_logprobs_NK
    # Summed over the other tokens instead of 1 - sum: exact for a small tail, with a finite gradient.
    student_tail_N1 = _tail(student_NV, top_ids_NK)
    mass_N1 = top_logprobs_NK.logsumexp(-1, keepdim=True).clamp(max=-TAIL_FLOOR)
    teacher_tail_N1 = (-torch.expm1(mass_N1)).log()
    return torch.cat([listed_NK, student_tail_N1], -1), torch.cat([top_logprobs_NK, teacher_tail_N1], -1)


Support = Literal["full", "teacher", "student", "union"]


def on_support(student_NV: Tensor, teacher_NV: Tensor, support: Support, top_k: int) -> tuple[Tensor, Tensor]:
    """Both models over the `top_k` likeliest tokens of the teacher, of the student or of either, and their tail.

    Args:
        student_NV, teacher_NV: log-probabilities over the full vocabulary, [N, V], nats. No gradient passes through the choice
            of the listed tokens.
        support: full, teacher, student or union.
        top_k: listed tokens of each model.

    Returns:
        Two tables of log-probabilities, [N, C + 1] with C = `top_k`, or 2 `top_k` for union, where the second entry of a token
        that both models list is -inf in both tables. Both tails are exact. With full, or `top_k` = V: the input tables.

    Raises:
        ValueError: `top_k` is more than V.

    Example:
        >>> student, teacher = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.1, 0.7, 0.2]]).log()
        >>> tables = on_support(student, teacher, "student", 1)
        >>> [[round(value, 4) for value in table.exp()[0].tolist()] for table in tables]
        [[0.6, 0.4], [0.1, 0.9]]
    """
    vocabulary = student_NV.shape[-1]
    if support != "full" and top_k > vocabulary:
        raise ValueError(f"top_k is {top_k}, and the vocabulary has {vocabulary} tokens; lower top_k, or set support=full")
    if support == "full" or top_k == vocabulary:
        return student_NV, teacher_NV
    lists = {"teacher": [teacher_NV], "student": [student_NV], "union": [teacher_NV, student_NV]}[support]
    ids_NC = torch.cat([table.detach().topk(top_k, -1).indices for table in lists], -1)
    repeated_NC = torch.zeros_like(ids_NC, dtype=torch.bool)
    if support == "union":
        first_NK, second_NK = ids_NC.split(top_k, -1)
        listed_NV = torch.zeros_like(student_NV, dtype=torch.bool).scatter(-1, first_NK, True)
        repeated_NC[:, top_k:] = listed_NV.gather(-1, second_NK)
    return _listed(student_NV, ids_NC, repeated_NC), _listed(teacher_NV, ids_NC, repeated_NC)


def _listed(table_NV: Tensor, ids_NC: Tensor, repeated_NC: Tensor) -> Tensor:
    """The listed tokens, -inf at repeated tokens, and the tail."""
    tail_N1 = _tail(table_NV, ids_NC)
    return torch.cat([table_NV.gather(-1, ids_NC).masked_fill(repeated_NC, float("-inf")), tail_N1], -1)


def _tail(table_NV: Tensor, ids_NC: Tensor) -> Tensor:
    """Log-probability of all tokens but the listed ones, [N, 1]; -inf, without gradient, where they have no mass."""
    others_NV = table_NV.scatter(-1, ids_NC, float("-inf"))
    tail_N1 = others_NV.logsumexp(-1, keepdim=True)
    empty_N1 = tail_N1.isneginf()
    if not bool(empty_N1.any()):
        return tail_N1
    # The values are replaced before the sum, since the gradient of logsumexp over -inf only is nan.
    return others_NV.masked_fill(empty_N1, 0.0).logsumexp(-1, keepdim=True).masked_fill(empty_N1, float("-inf"))
