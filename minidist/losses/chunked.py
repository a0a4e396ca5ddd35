"""Output head and objective, some loss tokens at a time, so that the logits of a whole batch never exist.

Equal to the unchunked result: the chunks' sums are added. With a `LinearHead` each chunk's gradient is formed as soon as its
loss is, and its logits are forgotten: nothing is computed twice. Another head is called again in the backward pass.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from minidist.losses.targets import Objective, TokenTargets

Head = Callable[[Tensor], Tensor]
"""Hidden states [N, D] to logits [N, V] in float32, vocabulary already sliced."""

_BLOCK = 1 << 21
"""Numbers in a block: 8 MiB a table, of which there are a handful at a time."""


@dataclass(frozen=True)
class LinearHead:
    """A head that is one matrix: logits = cap(scale * (hidden @ weight.T + bias))[:, :vocabulary], in float32.

    weight [V, D], bias [V] or None, cap(x) = soft_cap * tanh(x / soft_cap) when `soft_cap` is set.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    vocabulary: int | None = None

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """[N, V] logits."""
        return self.finish(self.raw(hidden_ND))

    def raw(self, hidden_ND: Tensor) -> Tensor:
        """[N, V] in the weight's dtype: what the matrix gives."""
        bias = None if self.bias is None else self.bias[: self.vocabulary]
        return torch.nn.functional.linear(hidden_ND.to(self.weight.dtype), self.weight[: self.vocabulary], bias)

    def finish(self, raw_NV: Tensor) -> Tensor:
        """Logits from what the matrix gives."""
        logits = raw_NV if raw_NV.dtype == torch.float64 else raw_NV.float()
        logits = logits if self.scale == 1 else logits * self.scale
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


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
        targets: the token ids predicted there, and what the teacher says of them. Tokens of one group stay in one chunk.
        teacher_hidden_NE: the teacher's hidden states at the same tokens, [N, E], from which `teacher_head` forms the full
            vocabulary of `targets`; no gradient reaches them.
        chunk_tokens: loss tokens whose [chunk, V] logits exist at one time.
        chunks: call the student's head at least so often, on no tokens at last: the ranks of a sharded head must call it
            equally often, forward and backward. None: as often as the tokens need.
    """
    work = _Work(objective, teacher_head, targets, teacher_hidden_NE)
    # Nothing tells of no teacher where there is no token either.
    taught = not len(hidden_ND) or teacher_hidden_NE is not None or targets.has_teacher
    parts = list(_parts(len(hidden_ND), chunk_tokens, targets.group_N, chunks or 1))
    learned = (hidden_ND.requires_grad, isinstance(student_head, LinearHead) and student_head.weight.requires_grad)
    if isinstance(student_head, LinearHead) and torch.is_grad_enabled() and any(learned):
        # One column of figures: loss, the labels' log-probability, the teacher's, and the objective's own.
        told: Tensor
        loss, told = _FormedAtOnce.apply(work, parts, student_head, hidden_ND, student_head.weight, student_head.bias)
        return _terms(loss, told, len(hidden_ND), taught)

    def one_chunk(hidden: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        return work.sums(student_head(hidden), part)

    # One piece needs no second forward pass.
    done = [
        one_chunk(hidden_ND[part], part)
        if len(parts) == 1
        else checkpoint(one_chunk, hidden_ND[part], part, use_reentrant=False)
        for part in parts
    ]
    losses, columns = zip(*done, strict=True)  # type: ignore[arg-type]
    return _terms(torch.stack(losses).sum(0), torch.stack(columns).sum(0), len(hidden_ND), taught)


def chunk_count(tokens: int, chunk_tokens: int, group_tokens: int | None = None) -> int:
    """Chunks that `chunked_loss` needs at most for so many tokens, where groups of up to `group_tokens` stay whole."""
    count = max(1, math.ceil(tokens / chunk_tokens))
    return count if group_tokens is None else 2 * count + 1  # two chunks in a row hold more tokens than one may


@torch.no_grad()
def complete(
    targets: TokenTargets, teacher_head: Head | None, teacher_hidden_NE: Tensor | None, temperature: float
) -> TokenTargets:
    """`targets` with the full vocabulary that the teacher's head makes of its hidden states, where there are any, and with
    the labels' log-probabilities taken from it where the teacher did not give them."""
    there = teacher_head is not None and teacher_hidden_NE is not None
    return _with_logits(targets, teacher_head(teacher_hidden_NE) if there else None, temperature)  # type: ignore[misc,arg-type]


@torch.no_grad()
def _with_logits(targets: TokenTargets, teacher_NV: Tensor | None, temperature: float) -> TokenTargets:
    if teacher_NV is not None:
        targets = replace(targets, teacher_NV=_log_softmax(teacher_NV, temperature))
    if targets.teacher_logprob_N is None and targets.teacher_NV is not None:
        said = targets.teacher_NV.gather(-1, targets.labels_N[:, None]).squeeze(-1)
        targets = replace(targets, teacher_logprob_N=said)
    return targets


@dataclass(frozen=True)
class _Work:
    """All of a batch but the student."""

    objective: Objective
    teacher_head: Head | None
    targets: TokenTargets
    teacher_hidden_NE: Tensor | None

    @torch.no_grad()
    def taught(self, part: slice) -> Tensor | None:
        """The teacher's logits of some of the tokens, where its head makes them."""
        there = self.teacher_head is not None and self.teacher_hidden_NE is not None
        return self.teacher_head(self.teacher_hidden_NE[part]) if there else None  # type: ignore[misc,index]

    def sums(self, logits_NV: Tensor, part: slice, taught_NV: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss of some of the tokens, with its gradient, and [2 + F] figures: the labels' log-probabilities under student
        and teacher (nan without one), and what the objective tells. `taught_NV`: what `taught` gave of them, if asked."""
        student_NV = _log_softmax(logits_NV, self.objective.temperature)
        if not len(student_NV):
            return student_NV.sum(), student_NV.new_zeros(2 + len(self.objective.figures))
        theirs_NV = self.taught(part) if taught_NV is None else taught_NV
        targets = _with_logits(self.targets.at(part), theirs_NV, self.objective.temperature)
        said = student_NV.detach().gather(-1, targets.labels_N[:, None]).sum()
        theirs = said.new_tensor(math.nan) if targets.teacher_logprob_N is None else targets.teacher_logprob_N.sum().to(said)
        told = self.objective.explain(student_NV.detach(), targets).sum(0).to(said)
        return self.objective(student_NV, targets).sum(), torch.cat([torch.stack([said, theirs]), told])


class _FormedAtOnce(torch.autograd.Function):
    """The loss, and the gradients of hidden states and head formed chunk by chunk on the way, to be handed out in the
    backward pass."""

    @staticmethod
    def forward(
        ctx: Any, work: _Work, parts: Sequence[slice], head: LinearHead, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[3:]
        # Summed over the chunks in float32, whatever the precision of the head.
        gradients = [torch.empty_like(hidden) if wanted[0] else None, *_zeros_like((weight, bias), wanted[1:])]
        loss, told = hidden.new_zeros((), dtype=torch.float32), None
        for part in parts:
            slope = head.raw(hidden[part])  # what the head gives, until its gradient takes its place
            taught = work.taught(part)
            for block in _blocks(part, slope, work.targets.group_N):
                inner = slice(block.start - part.start, block.stop - part.start)
                raw = slope[inner].detach().requires_grad_()
                with torch.enable_grad():
                    value, figures = work.sums(head.finish(raw), block, None if taught is None else taught[inner])
                    (found,) = torch.autograd.grad(value, raw)
                slope[inner] = found
                loss, told = loss + value.detach(), figures if told is None else told + figures
            _add(gradients, slope, hidden[part], weight[: head.vocabulary], part)
        ctx.gradients = [
            None if each is None else each.to(given) for each, given in zip(gradients, (hidden, weight, bias), strict=True)
        ]
        assert told is not None
        ctx.mark_non_differentiable(told)
        return loss, told

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: they are as large as the head
        return (None, None, None, *(each if each is None else each.mul_(slope.to(each)) for each in gradients))


def _zeros_like(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> Iterator[Tensor | None]:
    for tensor, learned in zip(tensors, wanted, strict=True):
        exact = None if tensor is None or not learned else torch.promote_types(tensor.dtype, torch.float32)
        yield None if tensor is None or exact is None else torch.zeros_like(tensor, dtype=exact)


def _add(gradients: Sequence[Tensor | None], slope: Tensor, hidden: Tensor, weight: Tensor, part: slice) -> None:
    """A chunk's share: `slope` [n, V] is the gradient of what the head's matrix gives."""
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        of_hidden[part] = slope @ weight
    if of_weight is not None:
        rows = of_weight[: slope.shape[1]]
        if rows.dtype == slope.dtype:
            rows.addmm_(slope.T, hidden.to(slope.dtype))
        else:  # in pieces too: a product as large as the head would be written, converted and read again for each chunk
            for block in _parts(len(rows), _block_rows(rows), None, 1):
                rows[block] += slope[:, block].T @ hidden.to(slope.dtype)
    if of_bias is not None:
        of_bias[: slope.shape[1]] += slope.sum(0)


def _parts(tokens: int, size: int, group_N: Tensor | None, least: int) -> Iterator[slice]:
    """Where the chunks begin and end; empty ones at last, until there are `least`."""
    ends = [*list(range(size, tokens, size)), tokens]
    if group_N is not None and tokens:
        last = [*(torch.nonzero(group_N[1:] != group_N[:-1])[:, 0] + 1).tolist(), tokens]
        ends, start = [], 0
        for place, end in enumerate(last):
            if place + 1 == len(last) or last[place + 1] - start > size:
                ends.append(end)
                start = end
    yield from (slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True))
    yield from (slice(tokens, tokens) for _ in range(least - len(ends)))


def _blocks(part: slice, logits_NV: Tensor, group_N: Tensor | None) -> Iterator[slice]:
    """A chunk in blocks small enough for what is done element by element to stay near a processor; groups stay whole."""
    for block in _parts(len(logits_NV), _block_rows(logits_NV), None if group_N is None else group_N[part], 1):
        yield slice(part.start + block.start, part.start + block.stop)


def _block_rows(table: Tensor) -> int:
    """Rows of a table in a block; all of them where a kernel takes them as they come."""
    return max(1, _BLOCK // table.shape[1] if table.device.type == "cpu" else len(table))


def _log_softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, -1)


def _terms(loss: Tensor, told: Tensor, tokens: int, taught: bool) -> LossTerms:
    return LossTerms(loss, tokens, told[0], told[1] if taught else None, told[2:])
