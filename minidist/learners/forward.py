"""The student's forward pass in a learner: flat micro-batches in, loss sums or per-token figures out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minidist.config.learner import LearnerConfig
from minidist.data.batching import MicroBatch
from minidist.data.rendering import Renderer
from minidist.learners.teacher import ResidentTeacher, Visitor
from minidist.losses.chunked import (
    Head,
    LazyLogits,
    LinearHead,
    LossTerms,
    MixedLogits,
    ScoredTokens,
    chunked_losses,
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
from minidist.types import Array, Measures, MixedScores, Scores, TeacherScores


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
    """The student's model and head, and the teachers' heads, over one micro-batch at a time. `check` comes first.

    Args:
        student: the model that learns.
        config: the `learner` section: the layout of a micro-batch, and the loss tokens whose logits exist at one time.
        teacher: its heads make logits of the teachers' hidden states, where a micro-batch brings any.
    """

    def __init__(self, student: Student, config: LearnerConfig, teacher: ResidentTeacher) -> None:
        super().__init__()
        self.model = student.model
        self.head = OutputHead(student.model)
        self.padded = True
        self._layout = config.layout
        self.chunk_tokens = config.chunk(student.vocabulary or student.model.config.get_text_config().vocab_size)
        self._mixed = config.compute_dtype is not None
        own = _in_its_own_precision if self._mixed else (lambda head: head)
        self._teacher_heads: dict[str, Head] = {name: own(head) for name, head in teacher.heads.items()}
        self.teachers = tuple(teacher.names)
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
        groups = None if objective.group_tokens is None else _groups(micro, objective.group_tokens).to(hidden_LD.device)
        scored = list(self._scored(micro, teacher_hidden_LE, self._vocabulary, groups))

        def terms(head: LinearHead, hidden_LD: Tensor) -> LossTerms:
            student, options = LazyLogits(head, hidden_LD), {"teachers": len(self.teachers)}
            return chunked_losses(objective, student, scored, chunk_tokens=self.chunk_tokens, **options)

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
        parts = self._parts(len(micro.labels))

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
        scored = list(self._scored(micro, teacher_hidden_LE, vocabulary))

        def figures(head: LinearHead, hidden_LD: Tensor) -> Tensor:
            student, found = LazyLogits(head, hidden_LD), []
            for tokens in scored:
                parts = self._parts(tokens.part.stop - tokens.part.start)
                for block, logits_NV, teacher_NV in in_blocks(student, tokens, parts):
                    student_NV = log_probabilities(logits_NV, temperature)
                    found.append(_figures(student_NV, complete(tokens.targets.at(block), teacher_NV, temperature), top_p))
            return _stacked(found)

        return self.head(hidden_LD, vocabulary, figures)

    def _parts(self, tokens: int) -> list[slice]:
        """The chunks of so many loss tokens; one without tokens where there are none."""
        size = self.chunk_tokens
        return [slice(start, min(start + size, tokens)) for start in range(0, max(tokens, 1), size)]

    def _scored(
        self, micro: MicroBatch, hidden_LE: Tensor | None, vocabulary: int | None, group_L: Tensor | None = None
    ) -> Iterator[ScoredTokens]:
        """The loss tokens, as many at a time as have scores of one kind, with their targets and their teacher's logits.

        hidden_LE: hidden states of a teacher in this process, which then is the only one. group_L: of the objective.
        """
        device, start = self.model.device, 0
        whole = replace(_targets(micro, device, vocabulary), group_N=group_L, teacher_N=self._teacher_numbers(micro))
        for scores in micro.scores or (None,):
            part = slice(start, start + (len(micro.labels) if scores is None else scores.tokens))
            targets = _with_scores(whole.at(part), scores, vocabulary)
            own = None if hidden_LE is None else LazyLogits(self._teacher_heads[""], hidden_LE)
            yield ScoredTokens(part, targets, own or self._logits(scores))
            start = part.stop

    def _logits(self, scores: Scores | None) -> LazyLogits | MixedLogits | None:
        """The teacher's logits, or those of a mixture, where the scores are hidden states whose head is in this process."""
        if isinstance(scores, MixedScores):
            found = [self._logits(member) for member in scores.members]
            return MixedLogits([each for each in found if isinstance(each, LazyLogits)], scores.weights)
        head = None if scores is None else self._teacher_heads.get(scores.head)
        if scores is None or scores.hidden is None or head is None:
            return None
        return LazyLogits(head, to_tensor(scores.hidden, scores.hidden_dtype).to(self.model.device))

    def _teacher_numbers(self, micro: MicroBatch) -> Tensor | None:
        """[L] int64: the number of each loss token's teacher; None where the rows have no teachers of their own."""
        if not micro.scores or not self.teachers:
            return None
        of_row = np.array([self.teachers.index(name) for name in micro.teachers], dtype=np.int64)
        return torch.as_tensor(of_row[micro.sequence[micro.outputs]], device=self.model.device)


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


def _stacked(figures: Sequence[Tensor]) -> Tensor:
    """Figures of successive tokens as one table; columns that the teacher of some tokens does not give are NaN there."""
    width = max(each.shape[1] for each in figures)
    return torch.cat([torch.nn.functional.pad(each, (0, width - each.shape[1]), value=torch.nan) for each in figures])


def _targets(micro: MicroBatch, device: torch.device, vocabulary: int | None) -> TokenTargets:
    """The targets of all loss tokens but the teacher's. Ids are columns of the head's logits over the vocabulary."""
    credit = micro.credit
    return TokenTargets(
        columns_of(torch.as_tensor(micro.labels, device=device), vocabulary),
        written_logprob_N=_tensor(micro.written_logprob, device),
        credit=credit and TokenCredit(*(torch.as_tensor(getattr(credit, f.name), device=device) for f in fields(credit))),
    )


def _with_scores(targets: TokenTargets, scores: Scores | None, vocabulary: int | None) -> TokenTargets:
    """The targets with those that the teacher's scores of the same tokens hold themselves."""
    if not isinstance(scores, TeacherScores):
        return targets
    device = targets.labels_N.device
    top_ids_NK = _tensor(scores.top_ids, device, torch.int64)
    return replace(
        targets,
        top_ids_NK=None if top_ids_NK is None else columns_of(top_ids_NK, vocabulary),
        top_logprobs_NK=_tensor(scores.top_logprobs, device),
        teacher_logprob_N=_tensor(scores.logprobs, device),
    )


def _tensor(array: Array | None, device: torch.device, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if array is None else to_tensor(array, str(array.dtype)).to(device, dtype)


def _groups(micro: MicroBatch, size: int) -> Tensor:
    """[L] int64: the same number for every `size` consecutive labels of a row, another one for all other labels."""
    row_L = micro.sequence[micro.outputs]
    firsts = np.concatenate([[0], np.flatnonzero(row_L[1:] != row_L[:-1]) + 1]) if len(row_L) else np.zeros(0, dtype=np.int64)
    index_L = np.arange(len(row_L)) - np.repeat(firsts, np.diff(np.append(firsts, len(row_L))))
    return torch.as_tensor(row_L * (1 << 32) + index_L // size)


def measures_of(figures: Sequence[Tensor | None]) -> Measures:
    """The figures of a stream's rows, in the rows' order; None stands for a row without labels."""
    known = [each for each in figures if each is not None]
    table = _stacked(known or [torch.zeros(0, 1)]).double().cpu().numpy()
    rows = np.repeat(np.arange(len(figures), dtype=np.int32), [0 if each is None else len(each) for each in figures])
    return Measures(rows, *(table[:, column] for column in range(table.shape[1])))
