"""Output head and objective, a chunk of loss tokens at a time, so that the logits of a whole batch never exist.

Equal to the unchunked result: the chunks' sums are added. With a `LinearHead` each chunk's gradient is computed right after its
loss, and its logits are freed: nothing is computed twice. Another head is called again in the backward pass.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minidist.losses.costs import recomputed, running_sum, wide
from minidist.losses.targets import Objective, TokenTargets
from minidist.types import Vocabulary

Head = Callable[[Tensor], Tensor]
"""Hidden states [N, D] to logits [N, V] in float32, vocabulary already sliced."""

_BLOCK, _ROWS = 1 << 19, 8
"""Numbers in a block, 2 MiB a table, of which there are a handful at a time; but at least so many rows, for all cores."""
_LINE = 32
"""Numbers of a cache line, or of two."""


@dataclass(frozen=True)
class LinearHead:
    """A head that is one matrix: logits = cap(scale * (hidden @ weight.T + bias))[:, vocabulary], in float32.

    weight [V, D], bias [V] or None, cap(x) = soft_cap * tanh(x / soft_cap) when `soft_cap` is set. Of a vocabulary with
    absent ids, [N, V] has a column for each of the others; `columns_of` maps ids to them.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    vocabulary: int | None = None

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """[N, V] logits."""
        return self.finish(self.raw(hidden_ND))

    def raw(self, hidden_ND: Tensor, tables: "Tables | None" = None) -> Tensor:
        """[N, V] products with the matrix, in the weight's dtype; without gradient in the memory of `tables`."""
        bias = None if self.bias is None else self.bias[: self.vocabulary]
        hidden_ND, weight_VD = hidden_ND.to(self.weight.dtype), self.weight[: self.vocabulary]
        if tables is None or torch.is_autocast_enabled(hidden_ND.device.type):
            return torch.nn.functional.linear(hidden_ND, weight_VD, bias)
        table_NV = tables.rows(len(hidden_ND), weight_VD)
        if bias is None:
            return torch.mm(hidden_ND, weight_VD.T, out=table_NV)
        return torch.addmm(bias, hidden_ND, weight_VD.T, out=table_NV)

    def finish(self, raw_NV: Tensor) -> Tensor:
        """Logits from the products that `raw` returns."""
        logits = wide(raw_NV) if self.scale == 1 else wide(raw_NV) * self.scale
        logits = logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)
        if self.vocabulary is None or not (absent := Vocabulary.of(self.vocabulary).absent):
            return logits
        kept = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        kept[list(absent)] = False
        return logits[:, kept]


class Tables:
    """Memory for the products of one chunk after another: fresh pages of a large table cost a fifth of the product.

    Every row begins at a multiple of `_LINE` numbers: into rows of 50,257 numbers a product takes 1.4 times as long.
    """

    def __init__(self) -> None:
        self._table_NV: Tensor | None = None

    def rows(self, count: int, weight_VD: Tensor) -> Tensor:
        """[count, V], uninitialised; the same memory as before where it has so many rows."""
        table, width = self._table_NV, math.ceil(len(weight_VD) / _LINE) * _LINE
        if table is None or len(table) < count or (table.shape[1], table.dtype) != (width, weight_VD.dtype):
            table = self._table_NV = weight_VD.new_empty(count, width)
        return table[:count, : len(weight_VD)]


@dataclass(frozen=True)
class LazyLogits:
    """Logits [N, V] that are not computed yet: a head, and the hidden states [N, D] that it is applied to."""

    head: Head
    hidden_ND: Tensor

    @torch.no_grad()
    def at(self, part: slice, tables: Tables | None = None) -> Tensor:
        """The logits of some of the tokens, without gradient; those of a linear head in the place of the last of `tables`."""
        if isinstance(self.head, LinearHead):
            return self.head.finish(self.head.raw(self.hidden_ND[part], tables))
        return self.head(self.hidden_ND[part])


@dataclass(frozen=True)
class MixedLogits:
    """Logits of a mixture of teachers that are not computed yet: log sum of weight * softmax(logits of a member).

    members: of the same N tokens and V classes, one for each of the `weights`, which are positive and add up to 1. A single
    member's logits are returned as they are.
    """

    members: Sequence[LazyLogits]
    weights: Sequence[float]

    @torch.no_grad()
    def at(self, part: slice, tables: Tables | None = None) -> Tensor:
        """The logits of some of the tokens, without gradient."""
        if len(self.members) == 1:
            return self.members[0].at(part, tables)
        mixed_NV: Tensor | None = None
        for member, weight in zip(self.members, self.weights, strict=True):
            member_NV = torch.log_softmax(member.at(part, tables), -1) + math.log(weight)
            mixed_NV = member_NV if mixed_NV is None else torch.logaddexp(mixed_NV, member_NV)
        assert mixed_NV is not None
        return mixed_NV


@dataclass(frozen=True)
class ScoredTokens:
    """Successive ones of a batch's loss tokens, whose scores are of one kind.

    part: their places among all loss tokens of the batch. targets: theirs. teacher: the teacher's logits of them, which form
    the full vocabulary of `targets`; no gradient reaches them. None where the targets hold all that is known.
    """

    part: slice
    targets: TokenTargets
    teacher: LazyLogits | MixedLogits | None = None

    def within(self, part: slice) -> slice:
        """A slice of the batch's loss tokens as one of these."""
        return slice(part.start - self.part.start, part.stop - self.part.start)


@torch.no_grad()
def in_blocks(
    student: LazyLogits, scored: ScoredTokens, parts: Sequence[slice]
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """The student's logits of successive blocks of the scored tokens, each block as a slice of them, and the teacher's where
    there is one, without gradient.

    `student`: of all loss tokens; `parts`: slices of the scored ones. The products with the heads are of whole `parts`, whose
    blocks are so small that elementwise work on their logits stays in a processor's cache.
    """
    tables = Tables(), Tables()
    for part in parts:
        start = scored.part.start
        student_NV = student.at(slice(start + part.start, start + part.stop), tables[0])
        teacher_NV = None if scored.teacher is None else scored.teacher.at(part, tables[1])
        for block in _blocks(part, student_NV, None):
            inner = slice(block.start - part.start, block.stop - part.start)
            yield block, student_NV[inner], None if teacher_NV is None else teacher_NV[inner]


def columns_of(ids: Tensor, vocabulary: int | None) -> Tensor:
    """The columns of a head's logits that belong to ids of its vocabulary.

    >>> columns_of(torch.tensor([0, 3]), Vocabulary(4, [1]))
    tensor([0, 2])
    """
    if vocabulary is None or not (absent := Vocabulary.of(vocabulary).absent):
        return ids
    return ids - torch.searchsorted(torch.tensor(absent, device=ids.device), ids)


def ids_of(columns: Tensor, vocabulary: int | None) -> Tensor:
    """The ids to which columns of a head's logits belong."""
    if vocabulary is None or not Vocabulary.of(vocabulary).absent:
        return columns
    return torch.tensor(Vocabulary.of(vocabulary).ids, device=columns.device)[columns]


class LossTerms(NamedTuple):
    """Sums over loss tokens: `loss` carries the gradient; `logprob` and `teacher_logprob` of the labels do not, nor the
    objective's `figures_F`. `teacher_logprob` is nan without a teacher. A tuple, since DeepSpeed looks for tensors in tuples,
    lists and dicts alone."""

    loss: Tensor
    tokens: int
    logprob: Tensor
    teacher_logprob: Tensor
    figures_F: Tensor


def chunked_loss(
    objective: Objective,
    student: LazyLogits,
    targets: TokenTargets,
    *,
    teacher: LazyLogits | MixedLogits | None = None,
    chunk_tokens: int = 1024,
) -> LossTerms:
    """Sum of `objective` over N loss tokens, `chunk_tokens` at a time. N may be 0: a loss of zero that touches the head.

    Args:
        student: its hidden states at the loss tokens, and its head, both trained.
        targets: the token ids predicted at the loss tokens, and the teacher's scores of them. Tokens of one group stay in one
            chunk.
        teacher: the teacher's hidden states at the same tokens, and its head, which form the full vocabulary of `targets`; no
            gradient reaches them.
        chunk_tokens: loss tokens whose [chunk, V] logits exist at one time.
    """
    scored = ScoredTokens(slice(0, len(student.hidden_ND)), targets, teacher)
    return chunked_losses(objective, student, [scored], chunk_tokens=chunk_tokens)


def chunked_losses(
    objective: Objective, student: LazyLogits, scored: Sequence[ScoredTokens], *, chunk_tokens: int, teachers: int = 0
) -> LossTerms:
    """`chunked_loss` of a batch whose tokens have scores of several kinds; `scored` are all of its tokens, in order.

    teachers: number of the teachers, of several, that the tokens may be of (`TokenTargets.teacher_N`); for each of them
    `figures_F` ends with the sum of its tokens' losses and, after all these, with their count.
    """
    head, hidden_ND = student.head, student.hidden_ND
    work = _TeachersAndObjective(objective, scored, chunk_tokens, teachers)
    if isinstance(head, LinearHead) and torch.is_grad_enabled() and (hidden_ND.requires_grad or head.weight.requires_grad):
        loss, sums = _EagerGradient.apply(work, head, hidden_ND, head.weight, head.bias)
        return LossTerms(loss, len(hidden_ND), sums[0], sums[1], sums[2:])

    def one_chunk(hidden_ND: Tensor, tokens: ScoredTokens, part: slice) -> tuple[Tensor, Tensor]:
        return work.sums(head(hidden_ND), tokens, part)

    chunks = list(work.chunks())
    done = [recomputed(one_chunk, hidden_ND[part], tokens, part, alone=len(chunks) == 1) for tokens, part in chunks]
    loss, sums = (torch.stack(each).sum(0) for each in zip(*done, strict=True))
    return LossTerms(loss, len(hidden_ND), sums[0], sums[1], sums[2:])


def log_probabilities(logits_NV: Tensor, temperature: float) -> Tensor:
    """Natural log-softmax of the logits, divided by the temperature."""
    return torch.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, -1)


def nucleus_logprob(logprobs_NV: Tensor, labels_N: Tensor, top_p: float) -> Tensor:
    """Log-probabilities [N] of labels under a distribution [N, V] cut to its nucleus and renormalised:

        log q(label) - log(sum of q over the fewest likeliest tokens whose probabilities add up to top_p, and the label)

    The label always counts as sampled: at the border of the nucleus the rounding of another engine may have kept it.

    >>> nucleus_logprob(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([1]), 0.7).exp()
    tensor([0.3750])
    """
    label_N = logprobs_NV.gather(-1, labels_N[:, None]).squeeze(-1)
    if top_p >= 1:
        return label_N
    ordered_NV = logprobs_NV.exp().sort(-1, descending=True).values
    kept_NV = running_sum(ordered_NV) - ordered_NV < top_p  # the mass before the token has not reached top_p
    mass_N = (ordered_NV * kept_NV).sum(-1)
    outside_N = label_N.exp() < ordered_NV.masked_fill(~kept_NV, torch.inf).amin(-1)
    return label_N - (mass_N + outside_N * label_N.exp()).log()


@torch.no_grad()
def complete(targets: TokenTargets, teacher_NV: Tensor | None, temperature: float) -> TokenTargets:
    """`targets` with the full vocabulary of the teacher's logits, where they are known, and with the labels' log-probabilities
    taken from it where the teacher did not give them."""
    if teacher_NV is not None:
        targets = replace(targets, teacher_NV=log_probabilities(teacher_NV, temperature))
    if targets.teacher_logprob_N is None and targets.teacher_NV is not None:
        targets = replace(targets, teacher_logprob_N=targets.of_labels(targets.teacher_NV))
    return targets


@dataclass(frozen=True)
class _TeachersAndObjective:
    """All of a batch's loss but the student."""

    objective: Objective
    scored: Sequence[ScoredTokens]
    chunk_tokens: int
    teachers: int

    def chunks(self) -> Iterator[tuple[ScoredTokens, slice]]:
        """The chunks, as slices of all loss tokens, each with the scored tokens that it is of."""
        for tokens in self.scored:
            first = tokens.part.start
            for part in _parts(tokens.part.stop - first, self.chunk_tokens, tokens.targets.group_N):
                yield tokens, slice(first + part.start, first + part.stop)

    def sums(
        self, logits_NV: Tensor, tokens: ScoredTokens, part: slice, teacher_NV: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of some of the tokens, with its gradient, and [2 + F] sums: the labels' log-probabilities under student and
        teacher (nan without a teacher), and the figures. `part`: of all loss tokens. `teacher_NV`: the teacher's logits of
        these tokens, where the caller has computed them."""
        student_NV = log_probabilities(logits_NV, self.objective.temperature)
        if not len(student_NV):
            return student_NV.sum(), student_NV.new_zeros(2 + len(self.objective.figures) + 2 * self.teachers)
        inner = tokens.within(part)
        if teacher_NV is None and tokens.teacher is not None:
            teacher_NV = tokens.teacher.at(inner)
        targets = complete(tokens.targets.at(inner), teacher_NV, self.objective.temperature)
        logprob = student_NV.detach().gather(-1, targets.labels_N[:, None]).sum()
        known = targets.teacher_logprob_N
        teacher_logprob = logprob.new_tensor(math.nan) if known is None else known.sum().to(logprob)
        figures_F = self.objective.explain(student_NV.detach(), targets).sum(0).to(logprob)
        loss_N = self.objective(student_NV, targets)
        by_teacher = self._by_teacher(loss_N.detach(), targets.teacher_N).to(logprob)
        return loss_N.sum(), torch.cat([torch.stack([logprob, teacher_logprob]), figures_F, by_teacher])

    def _by_teacher(self, loss_N: Tensor, teacher_N: Tensor | None) -> Tensor:
        """The sum of the losses of each teacher's tokens, and then their counts: [2 x teachers]."""
        found = loss_N.new_zeros(2, self.teachers)
        if teacher_N is not None:
            found.index_add_(1, teacher_N, torch.stack([loss_N, torch.ones_like(loss_N)]))
        return found.flatten()


class _EagerGradient(torch.autograd.Function):
    """The loss, and in the same pass the gradients of hidden states and head, chunk by chunk; the backward pass hands them
    out."""

    @staticmethod
    def forward(
        ctx: Any, work: _TeachersAndObjective, head: LinearHead, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[2:]
        # Summed over the chunks in float32, whatever the precision of the head.
        gradients = [
            torch.empty_like(hidden_ND) if wanted[0] else None,
            _zeros(weight_VD, wanted[1]),
            _zeros(bias_V, wanted[2]),
        ]
        loss, sums = hidden_ND.new_zeros((), dtype=torch.float32), None
        of_student, of_teacher = Tables(), Tables()
        for tokens, part in work.chunks():
            table_NV = head.raw(hidden_ND[part], of_student)  # the head's products, then, block by block, their gradient
            teacher_NV = None if tokens.teacher is None else tokens.teacher.at(tokens.within(part), of_teacher)
            group_N = tokens.targets.group_N
            for block in _blocks(part, table_NV, None if group_N is None else group_N[tokens.within(part)]):
                inner = slice(block.start - part.start, block.stop - part.start)
                raw_NV = table_NV[inner].detach().requires_grad_()
                with torch.enable_grad():
                    inner_NV = None if teacher_NV is None else teacher_NV[inner]
                    block_loss, block_sums = work.sums(head.finish(raw_NV), tokens, block, inner_NV)
                    (table_NV[inner],) = torch.autograd.grad(block_loss, raw_NV)
                loss, sums = loss + block_loss.detach(), block_sums if sums is None else sums + block_sums
            _add(gradients, table_NV, hidden_ND[part], weight_VD[: head.vocabulary], part)
        pairs = zip(gradients, (hidden_ND, weight_VD, bias_V), strict=True)
        ctx.gradients = [None if gradient is None else gradient.to(tensor) for gradient, tensor in pairs]
        assert sums is not None
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: they are as large as the head
        return (None, None, *(each if each is None else each.mul_(outer.to(each)) for each in gradients))


def _zeros(tensor: Tensor | None, wanted: bool) -> Tensor | None:
    return (
        torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        if wanted and tensor is not None
        else None
    )


def _add(
    gradients: Sequence[Tensor | None], raw_gradient_NV: Tensor, hidden_ND: Tensor, weight_VD: Tensor, part: slice
) -> None:
    """Add a chunk's share to the gradients of hidden states, weight and bias; `raw_gradient_NV` is that of `LinearHead.raw`."""
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        of_hidden[part] = raw_gradient_NV @ weight_VD
    if of_weight is not None:
        rows = of_weight[: raw_gradient_NV.shape[1]]
        if rows.dtype == raw_gradient_NV.dtype:
            rows.addmm_(raw_gradient_NV.T, hidden_ND.to(raw_gradient_NV.dtype))
        else:  # in pieces too: a product as large as the head would be written, converted and read again for each chunk
            for block in _parts(len(rows), _block_rows(rows), None):
                rows[block] += raw_gradient_NV[:, block].T @ hidden_ND.to(raw_gradient_NV.dtype)
    if of_bias is not None:
        of_bias[: raw_gradient_NV.shape[1]] += raw_gradient_NV.sum(0)


def _parts(tokens: int, size: int, group_N: Tensor | None) -> Iterator[slice]:
    """The chunks of `tokens`, in order; one without tokens where there are none."""
    ends = [*list(range(size, tokens, size)), tokens]
    if group_N is not None and tokens:
        group_ends = [*(torch.nonzero(group_N[1:] != group_N[:-1])[:, 0] + 1).tolist(), tokens]
        ends, start = [], 0
        for group, end in enumerate(group_ends):
            if group + 1 == len(group_ends) or group_ends[group + 1] - start > size:
                ends.append(end)
                start = end
    yield from (slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True))


def _blocks(part: slice, logits_NV: Tensor, group_N: Tensor | None) -> Iterator[slice]:
    """A chunk in blocks small enough that elementwise operations run in a processor's cache; its groups stay whole."""
    for block in _parts(len(logits_NV), _block_rows(logits_NV), group_N):
        yield slice(part.start + block.start, part.start + block.stop)


def _block_rows(table: Tensor) -> int:
    """Rows of a table in a block; all of them on a GPU."""
    return max(_ROWS, _BLOCK // table.shape[1] if table.device.type == "cpu" else len(table))
