"""Output head and objective, some loss tokens at a time, so that the logits of a whole batch never exist.

Equal to the unchunked result: the chunks' sums are added, and each chunk's logits are formed again in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minidist.protocols import Objective

Head = Callable[[Tensor], Tensor]
"""Hidden states [N, D] to logits [N, V] in float32, vocabulary already sliced."""


@dataclass(frozen=True)
class LossTerms:
    """Sums over loss tokens: `loss` carries the gradient; `logprob` and `teacher_logprob` of the labels do not."""

    loss: Tensor
    tokens: int
    logprob: Tensor
    teacher_logprob: Tensor | None


def chunked_loss(
    objective: Objective,
    student_head: Head,
    hidden_ND: Tensor,
    labels_N: Tensor,
    *,
    teacher_head: Head | None = None,
    teacher_hidden_NE: Tensor | None = None,
    chunk_tokens: int = 1024,
    chunks: int = 1,
) -> LossTerms:
    """Sum of `objective` over N loss tokens, `chunk_tokens` at a time.

    Args:
        student_head, teacher_head: hidden states to logits. The student's is trained.
        hidden_ND: the student's hidden states at the loss tokens, [N, D].
        labels_N: the token ids predicted there, [N].
        teacher_hidden_NE: the teacher's hidden states at the same tokens, [N, E]; no gradient reaches them.
        chunk_tokens: loss tokens whose [chunk, V] logits exist at one time.
        chunks: pieces to compute at least, empty ones included: ranks that share the head's weights call it equally often.
    """

    def one_chunk(hidden: Tensor, labels: Tensor, teacher_hidden: Tensor | None) -> tuple[Tensor, ...]:
        student = torch.log_softmax(student_head(hidden) / objective.temperature, -1)
        teacher = None
        if teacher_hidden is not None and teacher_head is not None:
            with torch.no_grad():
                teacher = torch.log_softmax(teacher_head(teacher_hidden) / objective.temperature, -1)
        loss = objective(student, labels, teacher).sum()
        said = student.detach().gather(-1, labels[:, None]).sum()
        return (loss, said) if teacher is None else (loss, said, teacher.gather(-1, labels[:, None]).sum())

    sums: list[Tensor] = []
    count = max(chunks, -(-len(labels_N) // chunk_tokens), 1)
    whole = count == 1  # one chunk needs no second forward pass
    for start in range(0, count * chunk_tokens, chunk_tokens):
        part = slice(start, start + chunk_tokens)
        arguments = (hidden_ND[part], labels_N[part], None if teacher_hidden_NE is None else teacher_hidden_NE[part])
        chunk = one_chunk(*arguments) if whole else checkpoint(one_chunk, *arguments, use_reentrant=False)
        sums = list(chunk) if not sums else [total + term for total, term in zip(sums, chunk, strict=True)]
    return LossTerms(sums[0], len(labels_N), sums[1], sums[2] if len(sums) > 2 else None)
