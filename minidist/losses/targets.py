"""Targets of loss tokens, and the protocols of divergences and objectives."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor


class Divergence(Protocol):
    """Per-token divergence in nats between two tables of log-probabilities over the same C classes."""

    def __call__(self, student_NC: Tensor, teacher_NC: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class TokenCredit:
    """`types.Credit` of N loss tokens, [N] each, without gradient."""

    old_logprob_N: Tensor
    advantage_N: Tensor
    weight_N: Tensor
    reach_N: Tensor

    def __getitem__(self, part: slice) -> "TokenCredit":
        """The credit of a slice of the tokens."""
        return TokenCredit(self.old_logprob_N[part], self.advantage_N[part], self.weight_N[part], self.reach_N[part])


@dataclass(frozen=True)
class TokenTargets:
    """Targets of N loss tokens. A field is None where the teacher's payload does not hold the values.

    labels_N: the token ids, int64. teacher_NV: the teacher's log-probabilities over the full vocabulary, at the objective's
    temperature. top_ids_NK, top_logprobs_NK: the teacher's K likeliest tokens, int64, and their log-probabilities.
    teacher_logprob_N: the teacher's log-probabilities of the labels. All in nats, without gradient. credit: advantages and
    weights for a policy gradient. group_N: int64 group index of each token, where an objective is defined over groups; the
    tokens of a group are adjacent. written_logprob_N: in text that may be of an earlier student, the labels' log-probabilities
    under the student that wrote them, NaN where it did not choose them. teacher_N: int64 number of each token's teacher, where
    the run has several and each row its own.
    """

    labels_N: Tensor
    teacher_NV: Tensor | None = None
    top_ids_NK: Tensor | None = None
    top_logprobs_NK: Tensor | None = None
    teacher_logprob_N: Tensor | None = None
    credit: TokenCredit | None = None
    group_N: Tensor | None = None
    written_logprob_N: Tensor | None = None
    teacher_N: Tensor | None = None

    def of_labels(self, table_NV: Tensor) -> Tensor:
        """The labels' entries of a table over the vocabulary, [N]."""
        return table_NV.gather(-1, self.labels_N[:, None]).squeeze(-1)

    def at(self, part: slice) -> "TokenTargets":
        """The targets of a slice of the tokens."""
        return TokenTargets(**{name: values[part] for name, values in vars(self).items() if values is not None})


class Objective(Protocol):
    """Loss of each of N loss tokens. No mask and no mean: the learner selects, sums and divides. The defaults are those of an
    objective that treats each token separately and reports no figures beside the loss.

    The configuration class declares which teacher payload the objective needs; a run is checked before it starts.
    """

    figures: ClassVar[tuple[str, ...]] = ()
    """Metric names of the columns of `explain`; the learner reports their means over tokens."""

    @property
    def sampled(self) -> bool:
        """Whether the loss of a token depends on which token was drawn, and not on the distributions alone."""
        return False

    @property
    def group_tokens(self) -> int | None:
        """Most consecutive tokens of one row in a group, for losses that are defined over groups. None: token by token."""
        return None

    @property
    def temperature(self) -> float:
        """Divides both models' logits before the softmax."""
        ...

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor: ...

    def explain(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N, F]: figures of each token, without gradient."""
        return student_NV.new_zeros(len(student_NV), 0)

    def peaks(self) -> dict[str, float]:
        """The largest values that `explain` met since the last call, by metric name; never negative."""
        return {}
