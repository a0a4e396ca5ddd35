"""Objectives: what a stream's loss tokens are trained towards. Each is one small class; `make_objective` knows its name."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minidist.config.objectives import KDConfig, MiniLLMConfig
from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.losses.estimators import k2
from minidist.losses.minillm import surrogate
from minidist.losses.support import top_k_and_tail
from minidist.protocols import Divergence, Objective, TokenTargets

DIVERGENCES: dict[str, Divergence] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


class Plain:
    """An objective whose loss says all there is to say."""

    figures: tuple[str, ...] = ()

    def explain(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N, 0]."""
        return student_NV.new_zeros(len(student_NV), 0)


@dataclass(frozen=True)
class Match(Plain):
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
class K2(Plain):
    """Half the squared log-ratio at the sampled token: the reverse KL's gradient from one log-probability a token.

    The tokens must be the student's own samples, at temperature 1 and not truncated.
    """

    temperature = 1.0

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] squared nats."""
        assert targets.teacher_logprob_N is not None, "no teacher log-probability of the labels"
        return k2(_of_labels(student_NV, targets), targets.teacher_logprob_N)


@dataclass(frozen=True)
class Supervised(Plain):
    """Cross-entropy on given labels: -log q(label)."""

    temperature: float = 1.0

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats."""
        return -_of_labels(student_NV, targets)


@dataclass(frozen=True)
class KD(Plain):
    """(1 - ratio) * cross-entropy on given labels + ratio * KL(teacher || student), full vocabulary or top K and tail."""

    ratio: float
    temperature = 1.0

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats."""
        return (1 - self.ratio) * Supervised()(student_NV, targets) + self.ratio * Match(forward_kl)(student_NV, targets)


@dataclass(frozen=True)
class MiniLLM:
    """Reverse KL of each token and the policy gradient of what followed it; `targets.credit` holds what it earned.

    `losses.minillm.minillm_loss` is the same for a whole batch, written out. Source: Gu et al., arXiv:2306.08543.
    """

    settings: MiniLLMConfig
    figures = ("policy/clip_frac", "policy/long_term_nats")

    @property
    def temperature(self) -> float:
        return self.settings.temperature

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats."""
        assert targets.credit is not None, "a policy gradient needs the tokens' credit"
        loss_N = self._long_term(student_NV, targets) if self.settings.long_term else student_NV.new_zeros(len(student_NV))
        if self.settings.single_step:
            loss_N = loss_N + targets.credit.reach_N * Match(reverse_kl, self.temperature)(student_NV, targets)
        return loss_N

    @torch.no_grad()
    def explain(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N, 2]: 1 where the clip holds the gradient back; the long term's share of the loss."""
        loss_N = self._long_term(student_NV, targets)
        return torch.stack([(loss_N > self._long_term(student_NV, targets, bounded=False)).to(loss_N), loss_N], -1)

    def _long_term(self, student_NV: Tensor, targets: TokenTargets, *, bounded: bool = True) -> Tensor:
        credit, clip = targets.credit, self.settings.clip if bounded else None
        assert credit is not None
        said_N = _of_labels(student_NV, targets)
        return surrogate(said_N, credit.old_logprob_N, credit.advantage_N, credit.weight_N, clip=clip)


def make_objective(type: str, **options: Any) -> Objective:
    """The objective of a configuration's `objective` section, given as its fields."""
    if type in DIVERGENCES:
        return Match(DIVERGENCES[type], **options)
    if type == "minillm":
        return MiniLLM(MiniLLMConfig(**options))
    return KD(KDConfig(**options).ratio) if type == "kd" else {"k2": K2, "supervised": Supervised}[type]()


def _of_labels(table_NV: Tensor, targets: TokenTargets) -> Tensor:
    return table_NV.gather(-1, targets.labels_N[:, None]).squeeze(-1)
