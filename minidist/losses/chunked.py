"""Output head and objective, some loss tokens at a time, so that the logits of a whole batch never exist.

Equal to the unchunked result: the chunks' sums are added, and each chunk's logits are formed again in the backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minidist.protocols import Objective, TokenTargets

Head = Callable[[Tensor], Tensor]
"""Hidden states [N, D] to logits [N, V] in float32, vocabulary already sliced."""
_Sums = tuple[Tensor, Tensor, Tensor | None, Tensor]


@dataclass(frozen=True)
class LossTerms:
    """Sums over loss tokens: `loss` carries the gradient; `logprob` and `teacher_logprob` of the labels do not, nor the
    objective's `figures` [F]."""

    loss: Tensor
    tokens: int
    logprob: Tensor
    teacher_logprob: Tensor | None
    figures: Tensor


def chunked_loss(
    objective: Objective,
    student_head: Head,
    hidden_ND: Tensor,
    targets: TokenTargets,
    *,
    teacher_head: Head | None = None,
    teacher_hidden_NE: Tensor | None = None,
    chunk_tokens: int = 1024,
    chunks: int | None = None,
) -> LossTerms:
    """Sum of `objective` over N loss tokens, `chunk_tokens` at a time. N may be 0: a loss of zero that touches the head.

    Args:
        student_head, teacher_head: hidden states to logits. The student's is trained.
        hidden_ND: the student's hidden states at the loss tokens, [N, D].
        targets: the token ids predicted there, and what the teacher says of them.
        teacher_hidden_NE: the teacher's hidden states at the same tokens, [N, E], from which `teacher_head` forms the full
            vocabulary of `targets`; no gradient reaches them.
        chunk_tokens: loss tokens whose [chunk, V] logits exist at one time.
        chunks: call the student's head at least so often, on no tokens at last: the ranks of a sharded head must call it
            equally often, forward and backward. None: as often as the tokens need.
    """

    def one_chunk(hidden: Tensor, targets: TokenTargets, teacher_hidden: Tensor | None) -> _Sums:
        student = torch.log_softmax(student_head(hidden) / objective.temperature, -1)
        if not len(hidden):
            nothing = student.detach().sum()
            return student.sum(), nothing, nothing, nothing.expand(len(objective.figures))
        targets = complete(targets, teacher_head, teacher_hidden, objective.temperature)
        said = student.detach().gather(-1, targets.labels_N[:, None]).sum()
        taught, told = targets.teacher_logprob_N, objective.explain(student.detach(), targets).sum(0)
        return objective(student, targets).sum(), said, None if taught is None else taught.sum(), told

    pieces = max(math.ceil(len(hidden_ND) / chunk_tokens), chunks or 1)
    parts: list[_Sums] = []
    for start in range(0, pieces * chunk_tokens, chunk_tokens):
        part = slice(start, start + chunk_tokens)
        arguments = (hidden_ND[part], targets.at(part), None if teacher_hidden_NE is None else teacher_hidden_NE[part])
        # One piece needs no second forward pass.
        parts.append(one_chunk(*arguments) if pieces == 1 else checkpoint(one_chunk, *arguments, use_reentrant=False))
    loss, said, told = (torch.stack([part[place] for part in parts]).sum(0) for place in (0, 1, 3))  # type: ignore[misc]
    taught = [part[2] for part in parts if part[2] is not None]
    return LossTerms(loss, len(hidden_ND), said, torch.stack(taught).sum() if len(taught) == pieces else None, told)


@torch.no_grad()
def complete(
    targets: TokenTargets, teacher_head: Head | None, teacher_hidden_NE: Tensor | None, temperature: float
) -> TokenTargets:
    """`targets` with the full vocabulary that the teacher's head makes of its hidden states, where there are any, and with
    the labels' log-probabilities taken from it where the teacher did not give them."""
    if teacher_head is not None and teacher_hidden_NE is not None:
        targets = replace(targets, teacher_NV=torch.log_softmax(teacher_head(teacher_hidden_NE) / temperature, -1))
    if targets.teacher_logprob_N is None and targets.teacher_NV is not None:
        said = targets.teacher_NV.gather(-1, targets.labels_N[:, None]).squeeze(-1)
        targets = replace(targets, teacher_logprob_N=said)
    return targets
