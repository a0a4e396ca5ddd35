"""The student as a learner runs it: flat micro-batches in, loss sums and per-token figures out."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minidist.data.batching import MicroBatch
from minidist.losses.chunked import Head, chunked_loss
from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.modeling import apply_head, check_head, head_of, hidden_states, padded_layout, to_tensor
from minidist.protocols import Objective
from minidist.types import Measures, TeacherHead


class Student(nn.Module):
    """The model, its output head, and the teacher's head. A forward pass ends in sums over loss tokens."""

    def __init__(
        self, model: PreTrainedModel, *, layout: str, chunk_tokens: int, teacher_head: TeacherHead | None = None
    ) -> None:
        super().__init__()
        check_head(model)
        self.model = model
        self.padded = padded_layout(layout, model.device)
        self._chunk = chunk_tokens
        # Both heads end at the shared vocabulary: ids beyond it are padding of one model or the other.
        self._head = head_of(model, teacher_head.vocabulary if teacher_head else None)
        self._whole_head = head_of(model)
        self._teacher_head = _on_device(teacher_head, model.device) if teacher_head else None

    def forward(
        self, micro: MicroBatch, objective: Objective | None, chunks: int = 1, *, whole: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None] | Tensor:
        """Sums over the micro-batch's loss tokens: objective, label log-probability, the teacher's label log-probability.

        Without an objective, figures of each loss token instead, [L, 1 to 4]: label log-probability and, given a teacher,
        its own, reverse and forward divergence. `chunks`: into how many pieces the head's work is cut at least; every rank of
        a partitioned model needs the same. `whole`: over all rows of the head, padding too.
        """
        hidden = hidden_states(self.model, micro, padded=self.padded)
        labels = torch.as_tensor(micro.labels, device=hidden.device)
        taught = self._teacher_hidden(micro, hidden.device)
        if objective is None:
            head = self._whole_head if whole else self._head
            count = max(chunks, -(-len(labels) // self._chunk), 1)
            parts = [slice(at * self._chunk, (at + 1) * self._chunk) for at in range(count)]
            return torch.cat([self._figures(head(hidden[at]), labels[at], taught, at) for at in parts])
        terms = chunked_loss(
            objective,
            self._head,
            hidden,
            labels,
            teacher_head=self._teacher_head,
            teacher_hidden_NE=taught,
            chunk_tokens=self._chunk,
            chunks=chunks,
        )
        return terms.loss, terms.logprob, terms.teacher_logprob

    def _figures(self, logits: Tensor, labels: Tensor, taught: Tensor | None, at: slice) -> Tensor:
        student = torch.log_softmax(logits, -1)
        said = student.gather(-1, labels[:, None])
        if taught is None or self._teacher_head is None:
            return said
        teacher = torch.log_softmax(self._teacher_head(taught[at]), -1)
        divergences = [reverse_kl(student, teacher)[:, None], forward_kl(student, teacher)[:, None]]
        return torch.cat([said, teacher.gather(-1, labels[:, None]), *divergences], -1)

    def _teacher_hidden(self, micro: MicroBatch, device: torch.device) -> Tensor | None:
        if micro.teacher_hidden is None:
            return None
        return to_tensor(micro.teacher_hidden, micro.teacher_hidden_dtype).to(device)


def _on_device(head: TeacherHead, device: torch.device) -> Head:
    tagged = "bfloat16" if head.weight.dtype.name == "uint16" else head.weight.dtype.name
    weight = to_tensor(head.weight, tagged).to(device)
    bias = None if head.bias is None else to_tensor(head.bias, tagged).to(device)
    return apply_head(head, weight, bias)


def measured(figures: Sequence[Tensor | None]) -> Measures:
    """The figures of a stream's rows, in their order; None for a row without labels."""
    table = torch.cat([each for each in figures if each is not None]).double().cpu().numpy()
    rows = np.repeat(np.arange(len(figures), dtype=np.int32), [0 if each is None else len(each) for each in figures])
    return Measures(rows, *(table[:, column] for column in range(table.shape[1])))
