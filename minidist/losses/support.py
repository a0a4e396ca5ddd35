"""What a divergence runs over: the full vocabulary, or K listed tokens and one class for all the rest.

Putting the rest together never raises an f-divergence (data processing inequality), so what is measured over K listed tokens
and their tail is a lower bound of the divergence over the full vocabulary, and equal to it at K = V, where no tail is left.
"""

from typing import Literal

import torch
from torch import Tensor

TAIL_FLOOR = 1e-7
"""Least probability the teacher's tail is credited with. It is about the rounding error of a float32 sum near 1: a tail below
it, or below zero, is noise of the listed values, and its logarithm would have no bound. A reverse KL pays at most 16.1 nats
for student mass put there."""


def top_k_and_tail(student_NV: Tensor, top_ids_NK: Tensor, top_logprobs_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Student and teacher over the same classes: the K tokens the teacher lists, and the tail when K < V.

    Args:
        student_NV: log-probabilities of the student, [N, V], nats.
        top_ids_NK: the tokens the teacher lists, [N, K], int64, no token twice in a row of the table.
        top_logprobs_NK: the teacher's log-probabilities of them, [N, K], nats.

    Returns:
        Two tables of log-probabilities, student and teacher, [N, K + 1], or [N, K] when K = V. The student's tail is exact;
        the teacher's is log(1 - sum of what is listed), not below log(TAIL_FLOOR).

    Example:
        >>> student = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> tables = top_k_and_tail(student, torch.tensor([[2]]), torch.tensor([[0.8]]).log())
        >>> [[round(value, 2) for value in table.exp()[0].tolist()] for table in tables]
        [[0.25, 0.75], [0.8, 0.2]]
    """
    listed_NK = student_NV.gather(-1, top_ids_NK)
    if top_ids_NK.shape[-1] == student_NV.shape[-1]:
        return listed_NK, top_logprobs_NK
    # From the tokens that are left, not as 1 - sum: exact however small, and with a gradient that stays finite.
    rest_N1 = _rest(student_NV, top_ids_NK)
    mass_N1 = top_logprobs_NK.logsumexp(-1, keepdim=True).clamp(max=-TAIL_FLOOR)
    tail_N1 = (-torch.expm1(mass_N1)).log()
    return torch.cat([listed_NK, rest_N1], -1), torch.cat([top_logprobs_NK, tail_N1], -1)


Support = Literal["full", "teacher", "student", "union"]


def on_support(student_NV: Tensor, teacher_NV: Tensor, support: Support, top_k: int) -> tuple[Tensor, Tensor]:
    """Both models over the `top_k` likeliest tokens of the teacher, of the student or of either, and the tail.

    Args:
        student_NV, teacher_NV: log-probabilities over the full vocabulary, [N, V], nats. Which tokens are listed is no choice
            that a gradient passes through.

    Returns:
        Two tables of log-probabilities, [N, C + 1], C = `top_k`, or twice that for union, where a token that both list leaves
        one place empty (-inf in both tables). Both tails are exact. The tables as they are for full, or when every token is
        listed.

    Raises:
        ValueError: `top_k` is more than V.

    Example:
        >>> student, teacher = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.1, 0.7, 0.2]]).log()
        >>> tables = on_support(student, teacher, "student", 1)
        >>> [[round(value, 4) for value in table.exp()[0].tolist()] for table in tables]
        [[0.6, 0.4], [0.1, 0.9]]
    """
    if support == "full":
        return student_NV, teacher_NV
    vocabulary = student_NV.shape[-1]
    if top_k > vocabulary:
        raise ValueError(f"top_k is {top_k}, and the vocabulary has {vocabulary} tokens; lower it, or set support to full")
    if top_k == vocabulary:
        return student_NV, teacher_NV
    lists = {"teacher": [teacher_NV], "student": [student_NV], "union": [teacher_NV, student_NV]}[support]
    ids_NC = torch.cat([table.detach().topk(top_k, -1).indices for table in lists], -1)
    again_NC = torch.zeros_like(ids_NC, dtype=torch.bool)
    if support == "union":
        first_NK, second_NK = ids_NC.split(top_k, -1)
        listed_NV = torch.zeros_like(student_NV, dtype=torch.bool).scatter(-1, first_NK, True)
        again_NC[:, top_k:] = listed_NV.gather(-1, second_NK)
    return _listed(student_NV, ids_NC, again_NC), _listed(teacher_NV, ids_NC, again_NC)


def _listed(table_NV: Tensor, ids_NC: Tensor, again_NC: Tensor) -> Tensor:
    """The listed tokens, -inf where one is listed again, and the rest as one class."""
    rest_N1 = _rest(table_NV, ids_NC)
    return torch.cat([table_NV.gather(-1, ids_NC).masked_fill(again_NC, float("-inf")), rest_N1], -1)


def _rest(table_NV: Tensor, ids_NC: Tensor) -> Tensor:
    """The logarithm of what is left beside the listed tokens, [N, 1]; -inf, without gradient, where that is nothing."""
    others_NV = table_NV.scatter(-1, ids_NC, float("-inf"))
    rest_N1 = others_NV.logsumexp(-1, keepdim=True)
    nothing_N1 = rest_N1.isneginf()
    if not bool(nothing_N1.any()):
        return rest_N1
    # Replaced before the sum: the slope of a sum of -inf is nan.
    return others_NV.masked_fill(nothing_N1, 0.0).logsumexp(-1, keepdim=True).masked_fill(nothing_N1, float("-inf"))
