"""The student's forward pass in a learner: flat micro-batches in, loss sums or per-token figures out."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minidist.config.learner import LearnerConfig
from minidist.data.batching import MicroBatch
from minidist.data.rendering import Renderer
from minidist.learners.teacher import Visitor
from minidist.losses.chunked import (
    Head,
    LazyLogits,
    LinearHead,
    LossTerms,
    chunked_loss,
    columns_of,
    complete,
    in_blocks,
    log_probabilities,
    nucleus_logprob,
)
from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.losses.targets import Objective, TokenCredit, TokenTargets
from minidist.models.arrays import to_tensor
from minidist.models.forward import hidden_states, padded_layout
from minidist.models.heads import OutputHead, check_head
from minidist.models.lora import Adapters
from minidist.types import Array, Measures, Payload, TeacherScores


@dataclass(frozen=True)
class Student:
    """The model that learns.

    renderer: writes its text, with its tokenizer. adapters: those that `lora.inject` put into the model, None if all of it is
    trained. vocabulary: ids that it shares with the teacher, and that both models' softmax is over; None: all of its ids.
    """

    model: PreTrainedModel
    renderer: Renderer
    adapters: Adapters | None = None
    vocabulary: int | None = None


class ForwardPass(nn.Module):
    """The student's model and head, and the teacher's head, over one micro-batch at a time. `check` comes first.

    Args:
        student: the model that learns.
        config: the `learner` section: the layout of a micro-batch, and the loss tokens whose logits exist at one time.
        teacher_head: makes logits of the teacher's hidden states, where a micro-batch brings any.
    """

    def __init__(self, student: Student, config: LearnerConfig, teacher_head: Head | None) -> None:
        super().__init__()
        self.model = student.model
        self.head = OutputHead(student.model)
        self.padded = True
        self._layout = config.layout
        self.chunk_tokens = config.chunk(student.vocabulary or student.model.config.get_text_config().vocab_size)
        self._mixed = config.compute_dtype is not None
        self._teacher_head = teacher_head if teacher_head is None or not self._mixed else _in_its_own_precision(teacher_head)
        self._vocabulary = student.vocabulary

    def forward(self, method: str, *arguments: Any, **options: Any) -> Any:
        """`check`, `loss`, `visit` or `measure`, by name: DeepSpeed prepares the parameters around `forward` alone."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._mixed):
            return getattr(self, method)(*arguments, **options)

    @torch.no_grad()
    def check(self) -> Tensor:
        """Settles the layout of micro-batches, once the parameters are where they stay: `padded`. Raises ModelError for a model
        whose logits are not those of its output head."""
        check_head(self.model)
        self.padded = padded_layout(self._layout, self.model)
        return torch.tensor(self.padded)

    def loss(self, micro: MicroBatch, objective: Objective, *, teacher_hidden_LE: Tensor | None = None) -> LossTerms:
        """Sums over the micro-batch's loss tokens.

        Args:
            micro: the text, with the teacher's scores.
            objective: the loss of each token.
            teacher_hidden_LE: the teacher's hidden states, where the micro-batch does not bring them.
        """
        hidden_LD = hidden_states(self.model, micro, padded=self.padded)
        targets = _targets(micro, hidden_LD.device, self._vocabulary)
        if objective.group_tokens is not None:
            targets = replace(targets, group_N=_groups(micro, objective.group_tokens).to(hidden_LD.device))
        teacher = self._teacher(micro, teacher_hidden_LE)

        def terms(head: LinearHead, hidden_LD: Tensor) -> LossTerms:
            student = LazyLogits(head, hidden_LD)
            return chunked_loss(objective, student, targets, teacher=teacher, chunk_tokens=self.chunk_tokens)

        return self.head(hidden_LD, self._vocabulary, terms)

    def visit(self, micro: MicroBatch, visitor: Visitor, *, temperature: float = 1.0, whole: bool = False) -> Tensor:
        """The visitor's figures of all loss tokens [L, F], chunk by chunk.

        Args:
            micro: the text.
            visitor: sees the student's log-probabilities of a chunk's tokens.
            temperature: divides the student's logits.
            whole: over all rows of the head, including ids beyond the shared vocabulary.
        """
        hidden_LD = hidden_states(self.model, micro, padded=self.padded)
        parts = self._parts(micro)

        def figures(head: LinearHead, hidden_LD: Tensor) -> Tensor:
            return torch.cat([visitor(part, log_probabilities(head(hidden_LD[part]), temperature)) for part in parts])

        return self.head(hidden_LD, None if whole else self._vocabulary, figures)

    def measure(
        self,
        micro: MicroBatch,
        *,
        teacher_hidden_LE: Tensor | None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        whole: bool = False,
    ) -> Tensor:
        """Figures of each loss token: [L, 1], the label's log-probability under the student; [L, 2], also under the teacher;
        or [L, 4], also reverse and forward KL, where the teacher's full vocabulary is known.

        Args:
            micro: the text.
            temperature, whole: as of `visit`; the temperature divides the teacher's logits too.
            teacher_hidden_LE: the teacher's hidden states, where the micro-batch does not bring them.
            top_p: of the nucleus over which the student's log-probabilities are taken; divergences are over all tokens.
        """
        hidden_LD = hidden_states(self.model, micro, padded=self.padded)
        vocabulary = None if whole else self._vocabulary
        targets, teacher = _targets(micro, self.model.device, vocabulary), self._teacher(micro, teacher_hidden_LE)

        def figures(head: LinearHead, hidden_LD: Tensor) -> Tensor:
            found = []
            for block, logits_NV, teacher_NV in in_blocks(LazyLogits(head, hidden_LD), teacher, self._parts(micro)):
                student_NV = log_probabilities(logits_NV, temperature)
                found.append(_figures(student_NV, complete(targets.at(block), teacher_NV, temperature), top_p))
            return torch.cat(found)

        return self.head(hidden_LD, vocabulary, figures)

    def _parts(self, micro: MicroBatch) -> list[slice]:
        """The chunks of a micro-batch's loss tokens; one without tokens where it has none."""
        size = self.chunk_tokens
        return [slice(start, start + size) for start in range(0, max(len(micro.labels), 1), size)]

    def _teacher(self, micro: MicroBatch, hidden_LE: Tensor | None) -> LazyLogits | None:
        """The teacher's logits, if its hidden states are known: `hidden_LE`, or those among the micro-batch's scores."""
        scores = micro.scores
        if hidden_LE is None and scores is not None and scores.hidden is not None:
            hidden_LE = to_tensor(scores.hidden, scores.hidden_dtype).to(self.model.device)
        return None if hidden_LE is None or self._teacher_head is None else LazyLogits(self._teacher_head, hidden_LE)


def _in_its_own_precision(head: Head) -> Head:
    """The head as it is outside of autocast: learner.compute_dtype is the student's."""

    def logits(hidden_ND: Tensor) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return head(hidden_ND)

    return logits


def _figures(student_NV: Tensor, scored: TokenTargets, top_p: float) -> Tensor:
    """The columns of `ForwardPass.measure`."""
    columns = [nucleus_logprob(student_NV, scored.labels_N, top_p)]
    if scored.teacher_logprob_N is not None:
        columns.append(scored.teacher_logprob_N)
    if scored.teacher_NV is not None:
        columns += [reverse_kl(student_NV, scored.teacher_NV), forward_kl(student_NV, scored.teacher_NV)]
    return torch.stack(columns, -1)


def _targets(micro: MicroBatch, device: torch.device, vocabulary: int | None) -> TokenTargets:
    """Ids are columns of the head's logits over the vocabulary."""
    scores, credit = micro.scores or TeacherScores(Payload.SAMPLED), micro.credit

    def tensor(array: Array | None, dtype: torch.dtype | None = None) -> Tensor | None:
        return None if array is None else to_tensor(array, str(array.dtype)).to(device, dtype)

    top_ids_NK = tensor(scores.top_ids, torch.int64)
    return TokenTargets(
        columns_of(torch.as_tensor(micro.labels, device=device), vocabulary),
        top_ids_NK=None if top_ids_NK is None else columns_of(top_ids_NK, vocabulary),
        top_logprobs_NK=tensor(scores.top_logprobs),
        teacher_logprob_N=tensor(scores.logprobs),
        written_logprob_N=tensor(micro.written_logprob),
        credit=credit and TokenCredit(*(torch.as_tensor(getattr(credit, f.name), device=device) for f in fields(credit))),
    )


def _groups(micro: MicroBatch, size: int) -> Tensor:
    """[L] int64: the same number for every `size` consecutive labels of a row, another one for all other labels."""
    row_L = micro.sequence[micro.outputs]
    firsts = np.concatenate([[0], np.flatnonzero(row_L[1:] != row_L[:-1]) + 1]) if len(row_L) else np.zeros(0, dtype=np.int64)
    index_L = np.arange(len(row_L)) - np.repeat(firsts, np.diff(np.append(firsts, len(row_L))))
    return torch.as_tensor(row_L * (1 << 32) + index_L // size)


def measures_of(figures: Sequence[Tensor | None]) -> Measures:
    """The figures of a stream's rows, in the rows' order; None stands for a row without labels."""
    known = [each for each in figures if each is not None]
    table = torch.cat(known or [torch.zeros(0, 1)]).double().cpu().numpy()
    rows = np.repeat(np.arange(len(figures), dtype=np.int32), [0 if each is None else len(each) for each in figures])
    return Measures(rows, *(table[:, column] for column in range(table.shape[1])))
