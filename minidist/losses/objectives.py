"""Objectives: what a stream's loss tokens are trained towards. Each is one small class; `make_objective` knows its name."""

from dataclasses import dataclass

from torch import Tensor

from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.losses.estimators import k2
from minidist.losses.support import top_k_and_tail
from minidist.protocols import Divergence, Objective, TokenTargets

DIVERGENCES: dict[str, Divergence] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


@dataclass(frozen=True)
class Match:
    """The student's distribution at each token, drawn to the teacher's by a divergence.

    Over the full vocabulary where the teacher's is there, else over its K likeliest tokens and their tail. Both models'
    logits are divided by `temperature` before the softmax; other than 1 it needs the full vocabulary.
    """

    divergence: Divergence
    temperature: float = 1.0

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats. The labels do not enter: the sum over the classes is exact."""
        if targets.teacher_NV is not None:
            return self.divergence(student_NV, targets.teacher_NV)
        assert targets.top_ids_NK is not None and targets.top_logprobs_NK is not None, "no distribution to match"
        assert self.temperature == 1, "the tail of a top-K payload has no temperature but 1"
        return self.divergence(*top_k_and_tail(student_NV, targets.top_ids_NK, targets.top_logprobs_NK))


@dataclass(frozen=True)
class K2:
    """Half the squared log-ratio at the sampled token: the reverse KL's gradient from one log-probability a token.

    The tokens must be the student's own samples, at temperature 1 and not truncated.
    """

    temperature = 1.0

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] squared nats."""
        assert targets.teacher_logprob_N is not None, "no teacher log-probability of the labels"
        return k2(_of_labels(student_NV, targets), targets.teacher_logprob_N)


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy on given labels: -log q(label)."""

    temperature: float = 1.0

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats."""
        return -_of_labels(student_NV, targets)


def make_objective(type: str, temperature: float = 1.0) -> Objective:
    """The objective of a configuration's `objective.type`."""
    if type in DIVERGENCES:
        return Match(DIVERGENCES[type], temperature)
    return {"k2": K2, "supervised": Supervised}[type]()


def _of_labels(table_NV: Tensor, targets: TokenTargets) -> Tensor:
    return table_NV.gather(-1, targets.labels_N[:, None]).squeeze(-1)
