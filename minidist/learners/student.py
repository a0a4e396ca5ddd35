"""The student as a learner runs it: flat micro-batches in, loss sums and per-token figures out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minidist.data.batching import MicroBatch, pack
from minidist.losses.chunked import Head, chunked_loss
from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.modeling import apply_head, check_head, head_of, hidden_states, padded_layout, to_array, to_tensor
from minidist.protocols import Objective
from minidist.types import Array, Measures, Stream, TeacherHead


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
        self._teacher_head = _on_device(teacher_head, model.device) if teacher_head else None

    def forward(self, micro: MicroBatch, objective: Objective) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sums over the micro-batch's loss tokens: objective, label log-probability, the teacher's label log-probability."""
        hidden = hidden_states(self.model, micro, padded=self.padded)
        terms = chunked_loss(
            objective,
            self._head,
            hidden,
            torch.as_tensor(micro.labels, device=hidden.device),
            teacher_head=self._teacher_head,
            teacher_hidden_NE=self._teacher_hidden(micro, hidden.device),
            chunk_tokens=self._chunk,
        )
        return terms.loss, terms.logprob, terms.teacher_logprob

    @torch.no_grad()
    def measure(self, stream: Stream, budget: int) -> Measures:
        """Per-token figures of a stream, in row order."""
        table: dict[int, Tensor] = {}
        for micro in pack(stream.rows, budget=budget, padded=self.padded):
            hidden = hidden_states(self.model, micro, padded=self.padded)
            labels = torch.as_tensor(micro.labels, device=hidden.device)
            taught = self._teacher_hidden(micro, hidden.device)
            parts = [self._figures(hidden[at], labels[at], taught, at) for at in _chunks(len(labels), self._chunk)]
            lengths = [len(stream.rows[index].labels) for index in micro.rows]
            table |= dict(zip(micro.rows, torch.cat(parts).split(lengths), strict=True))
        figures = torch.cat([table[index] for index in range(len(stream.rows))]).double().cpu().numpy()
        rows = [index for index, row in enumerate(stream.rows) for _ in row.labels]
        columns = [figures[:, column] for column in range(figures.shape[1])]
        return Measures(_int32(rows), *columns)

    def _figures(self, hidden: Tensor, labels: Tensor, taught: Tensor | None, at: slice) -> Tensor:
        """[chunk, 1] or [chunk, 4]: student and teacher log-probability, reverse and forward divergence."""
        student = torch.log_softmax(self._head(hidden), -1)
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


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _int32(values: Sequence[int]) -> Array:
    return to_array(torch.tensor(values, dtype=torch.int32))[0]
