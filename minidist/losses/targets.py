"""What loss tokens are trained towards, and what an objective is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Divergence(Protocol):
    """Per-token divergence in nats between two tables of log-probabilities over the same C classes."""

    def __call__(self, student_NC: Tensor, teacher_NC: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class TokenCredit:
    """`types.Credit` of N loss tokens, [N] each; no gradient reaches any of it."""

    old_logprob_N: Tensor
    advantage_N: Tensor
    weight_N: Tensor
    reach_N: Tensor

    def at(self, part: slice) -> TokenCredit:
        """That of some of the tokens."""
        return TokenCredit(self.old_logprob_N[part], self.advantage_N[part], self.weight_N[part], self.reach_N[part])


@dataclass(frozen=True)
class TokenTargets:
    """What N loss tokens are trained towards. A field is None where the teacher's payload does not hold it.

    labels_N: the token ids, int64. teacher_NV: the teacher's log-probabilities over the full vocabulary, at the objective's
    temperature. top_ids_NK, top_logprobs_NK: the K tokens it finds likeliest, int64, and their log-probabilities.
    teacher_logprob_N: its log-probabilities of the labels. All in nats; no gradient reaches any of them. credit: what the
    tokens earned, for a policy gradient. group_N: int64, equal for tokens of one group, which stand side by side, where an
    objective is defined over groups.
    """

    labels_N: Tensor
    teacher_NV: Tensor | None = None
    top_ids_NK: Tensor | None = None
    top_logprobs_NK: Tensor | None = None
    teacher_logprob_N: Tensor | None = None
    credit: TokenCredit | None = None
    group_N: Tensor | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether the labels' log-probabilities under the teacher are known without its head."""
        return self.teacher_logprob_N is not None or self.teacher_NV is not None

    def at(self, part: slice) -> TokenTargets:
        """Those of some of the tokens."""

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[part]

        return TokenTargets(
            self.labels_N[part],
            cut(self.teacher_NV),
            cut(self.top_ids_NK),
            cut(self.top_logprobs_NK),
            cut(self.teacher_logprob_N),
            self.credit and self.credit.at(part),
            cut(self.group_N),
        )


class Objective(Protocol):
    """Loss of each of the N tokens that count. No mask and no mean: the learner selects, sums and divides.

    What payload it needs of the teacher is a field of its configuration, which is checked before a run starts.
    """

    @property
    def temperature(self) -> float:
        """Divides both models' logits before the softmax."""
        ...

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `explain` tells, as metrics of the run; their sums over tokens become means."""
        ...

    @property
    def group_tokens(self) -> int | None:
        """Most consecutive tokens of one row that the loss is defined over together; None: each token by itself."""
        ...

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor: ...

    def explain(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N, F]: figures of each token, without gradient."""
        ...
