"""The student as a learner runs it: flat micro-batches in, loss sums and per-token figures out."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minidist.data.batching import MicroBatch
from minidist.learners.tutor import Look
from minidist.losses.chunked import Head, chunked_loss, complete
from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.losses.targets import Objective, TokenCredit, TokenTargets
from minidist.models.arrays import to_tensor
from minidist.models.forward import hidden_states, padded_layout
from minidist.models.heads import apply_head, check_head, head_of
from minidist.types import Array, Measures, Payload, TeacherHead, TeacherScores


class Student(nn.Module):
    """The model, its output head, and the teacher's head. A forward pass ends in sums over loss tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        layout: str,
        chunk_tokens: int,
        teacher_head: TeacherHead | Head | None = None,
        vocabulary: int | None = None,
    ) -> None:
        super().__init__()
        check_head(model)
        self.model = model
        self.padded = padded_layout(layout, model.device)
        self._chunk = chunk_tokens
        # Both models' softmax ends at the shared vocabulary: ids beyond it are padding of one or the other.
        self._vocabulary = vocabulary
        self._teacher_head = _on_device(teacher_head, model.device) if isinstance(teacher_head, TeacherHead) else teacher_head

    def forward(
        self,
        micro: MicroBatch,
        objective: Objective | None,
        chunks: int | None = None,
        *,
        taught: Tensor | None = None,
        temperature: float = 1.0,
        whole: bool = False,
        look: Look | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor] | Tensor:
        """Sums over the micro-batch's loss tokens: objective, label log-probability, the teacher's label log-probability, and
        the objective's own figures.

        Without an objective, figures of each loss token instead, as `_figures` gives them, logits divided by `temperature`.
        `chunks`: call the output head at least so often (`losses.chunked_loss`). `taught`: the teacher's hidden states [L, E],
        where the micro-batch does not bring them. `whole`: over all rows of the head, padding too. `look`: gives figures of
        its own.
        """
        hidden = hidden_states(self.model, micro, padded=self.padded)
        targets, taught = _targets(micro, hidden.device), _teacher_hidden(micro, hidden.device) if taught is None else taught
        if objective is None:
            head = head_of(self.model, None if whole else self._vocabulary)
            parts = _chunks(max(len(micro.labels), (chunks or 1) * self._chunk - self._chunk + 1), self._chunk)
            if look is not None:
                return torch.cat([look(at, torch.log_softmax(head(hidden[at]), -1)) for at in parts])
            given = ((head(hidden[at]) / temperature, targets.at(at), None if taught is None else taught[at]) for at in parts)
            return torch.cat([self._figures(*each, temperature) for each in given])
        terms = chunked_loss(
            objective,
            head_of(self.model, self._vocabulary),
            hidden,
            targets
            if objective.group_tokens is None
            else replace(targets, group_N=_groups(micro, objective.group_tokens).to(hidden.device)),
            teacher_head=self._teacher_head,
            teacher_hidden_NE=taught,
            chunk_tokens=self._chunk,
            chunks=chunks,
        )
        return terms.loss, terms.logprob, terms.teacher_logprob, terms.figures

    def _figures(self, logits: Tensor, targets: TokenTargets, taught: Tensor | None, temperature: float) -> Tensor:
        """[chunk, 1], [chunk, 2] or [chunk, 4]: student and teacher log-probability, reverse and forward divergence."""
        student = torch.log_softmax(logits, -1)
        targets = complete(targets, self._teacher_head, taught, temperature)
        columns = [student.gather(-1, targets.labels_N[:, None]).squeeze(-1)]
        if targets.teacher_logprob_N is not None:
            columns.append(targets.teacher_logprob_N)
        if targets.teacher_NV is not None:
            columns += [reverse_kl(student, targets.teacher_NV), forward_kl(student, targets.teacher_NV)]
        return torch.stack(columns, -1)


def _targets(micro: MicroBatch, device: torch.device) -> TokenTargets:
    labels, scores = torch.as_tensor(micro.labels, device=device), micro.scores or TeacherScores(Payload.SAMPLED)

    def tensor(array: Array | None) -> Tensor | None:
        return None if array is None else to_tensor(array, str(array.dtype)).to(device)

    ids, earned = tensor(scores.top_ids), micro.credit
    return TokenTargets(
        labels,
        top_ids_NK=None if ids is None else ids.long(),
        top_logprobs_NK=tensor(scores.top_logprobs),
        teacher_logprob_N=tensor(scores.logprobs),
        credit=earned and TokenCredit(*(torch.as_tensor(getattr(earned, f.name), device=device) for f in fields(earned))),
    )


def _groups(micro: MicroBatch, size: int) -> Tensor:
    """[L]: a number for every `size` consecutive labels of a row; a row's own, wherever it was packed."""
    rows = micro.sequence[micro.outputs]
    firsts = np.concatenate([[0], np.flatnonzero(rows[1:] != rows[:-1]) + 1]) if len(rows) else np.zeros(0, dtype=np.int64)
    places = np.arange(len(rows)) - np.repeat(firsts, np.diff(np.append(firsts, len(rows))))
    return torch.as_tensor(rows * (1 << 32) + places // size)


def _teacher_hidden(micro: MicroBatch, device: torch.device) -> Tensor | None:
    if micro.scores is None or micro.scores.hidden is None:
        return None
    return to_tensor(micro.scores.hidden, micro.scores.hidden_dtype).to(device)


def _on_device(head: TeacherHead, device: torch.device) -> Head:
    tagged = "bfloat16" if head.weight.dtype.name == "uint16" else head.weight.dtype.name
    weight = to_tensor(head.weight, tagged).to(device)
    bias = None if head.bias is None else to_tensor(head.bias, tagged).to(device)
    return apply_head(head, weight, bias)


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def measured(figures: Sequence[Tensor | None]) -> Measures:
    """The figures of a stream's rows, in their order; None for a row without labels."""
    there = [each for each in figures if each is not None]
    table = torch.cat(there or [torch.zeros(0, 1)]).double().cpu().numpy()
    rows = np.repeat(np.arange(len(figures), dtype=np.int32), [0 if each is None else len(each) for each in figures])
    return Measures(rows, *(table[:, column] for column in range(table.shape[1])))
