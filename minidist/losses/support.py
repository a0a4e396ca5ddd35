"""What a divergence runs over: the full vocabulary, or the teacher's K likeliest tokens and one class for all the rest.

Putting the rest together never raises an f-divergence (data processing inequality), so what is measured over K listed tokens
and their tail is a lower bound of the divergence over the full vocabulary, and equal to it at K = V, where no tail is left.
"""

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
    rest_N1 = student_NV.scatter(-1, top_ids_NK, float("-inf")).logsumexp(-1, keepdim=True)
    mass_N1 = top_logprobs_NK.logsumexp(-1, keepdim=True).clamp(max=-TAIL_FLOOR)
    tail_N1 = (-torch.expm1(mass_N1)).log()
    return torch.cat([listed_NK, rest_N1], -1), torch.cat([top_logprobs_NK, tail_N1], -1)
