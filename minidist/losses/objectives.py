"""Objectives: what a stream's loss tokens are trained towards. Each is one small class; `make_objective` knows its name."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from minidist.config.divergences import Matching, SinkhornConfig
from minidist.config.objectives import KDConfig, ObjectiveConfig, PolicyConfig, PolicyGradientConfig, RankingConfig
from minidist.losses.adaptive import akl, entropy_gated, todi
from minidist.losses.divergences import forward_kl, jeffreys, reverse_kl, total_variation
from minidist.losses.estimators import k2
from minidist.losses.minillm import surrogate
from minidist.losses.mixtures import jsd, jsd_normalised, skew_forward_kl, skew_reverse_kl
from minidist.losses.powers import alpha_beta
from minidist.losses.support import Support, on_support, top_k_and_tail
from minidist.losses.targets import Divergence, Objective, TokenTargets
from minidist.losses.transport import Moved, Teacher, grouped_sinkhorn

DIVERGENCES: dict[str, Any] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jeffreys": jeffreys,
    "total_variation": total_variation,
    "jsd": jsd,
    "jsd_normalised": jsd_normalised,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "akl": akl,
    "alpha_beta": alpha_beta,
    "todi": todi,
    "entropy_gated": entropy_gated,
}


class Plain:
    """An objective whose loss says all there is to say."""

    figures: tuple[str, ...] = ()
    group_tokens: int | None = None

    def explain(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N, 0]."""
        return student_NV.new_zeros(len(student_NV), 0)


@dataclass(frozen=True)
class Match(Plain):
    """The student's distribution at each token, drawn to the teacher's by a divergence.

    Over the classes of `support`, the `top_k` likeliest tokens and their tail; None is the full vocabulary where the teacher's
    is there, else all that it lists. Both models' logits are divided by `temperature` before the softmax; other than 1 it needs
    the full vocabulary.
    """

    divergence: Divergence
    temperature: float = 1.0
    support: Support | None = None
    top_k: int = 64

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats. The labels do not enter: the sum over the classes is exact."""
        return self.divergence(*self._tables(student_NV, targets))

    def _tables(self, student_NV: Tensor, targets: TokenTargets) -> tuple[Tensor, Tensor]:
        if targets.teacher_NV is not None:
            return on_support(student_NV, targets.teacher_NV, self.support or "full", self.top_k)
        ids_NK, logprobs_NK = targets.top_ids_NK, targets.top_logprobs_NK
        assert ids_NK is not None and logprobs_NK is not None, "no distribution to match"
        assert self.temperature == 1, "the tail of a top-K payload has no temperature but 1"
        listed = slice(self.top_k if self.support == "teacher" else None)
        return top_k_and_tail(student_NV, ids_NK[:, listed], logprobs_NK[:, listed])


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
class Transport(Plain):
    """Optimal transport among the tokens of a group, beside a divergence at each token; `losses.transport.sinkhorn`.

    Source: Cui et al., SinKD, arXiv:2402.17110.
    """

    settings: SinkhornConfig
    figures = ("transport/moved", "transport/marginal_error")

    @property
    def temperature(self) -> float:
        return self.settings.temperature

    @property
    def group_tokens(self) -> int:  # type: ignore[override]
        return self.settings.group_tokens

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats, and distances times their weight."""
        loss_N = self.settings.weight * self._moved(student_NV, targets).distance_N
        if self.settings.paired == "none":
            return loss_N
        return loss_N + Match(DIVERGENCES[self.settings.paired], self.temperature)(student_NV, targets)

    @torch.no_grad()
    def explain(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N, 2]: the distance that each token's distribution is moved by, and the marginal error of its group's plan."""
        moved = self._moved(student_NV, targets)
        return torch.stack([moved.distance_N, moved.marginal_error_N], -1)

    def _moved(self, student_NV: Tensor, targets: TokenTargets) -> Moved:
        assert targets.group_N is not None, "transport needs the groups of its tokens"
        teacher: Teacher | None = targets.teacher_NV
        if teacher is None:
            assert targets.top_ids_NK is not None and targets.top_logprobs_NK is not None, "no distribution to transport"
            teacher = targets.top_ids_NK, targets.top_logprobs_NK
        return grouped_sinkhorn(student_NV, teacher, targets.group_N, **self.settings.options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class KD(Plain):
    """(1 - ratio) * cross-entropy on given labels + ratio * t^2 * KL(teacher || student), the divergence at temperature t, over
    the full vocabulary or top K and tail. Source: Hinton, Vinyals & Dean, arXiv:1503.02531, section 2."""

    ratio: float
    temperature: float = 1.0
    divergence: Divergence = forward_kl

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats."""
        # Logits come divided by the temperature; multiplied again they are those of temperature 1, but for a constant.
        sharp_NV = student_NV if self.temperature == 1 else torch.log_softmax(student_NV * self.temperature, -1)
        matched_N = Match(self.divergence, self.temperature)(student_NV, targets)
        return (1 - self.ratio) * Supervised()(sharp_NV, targets) + self.ratio * self.temperature**2 * matched_N


@dataclass(frozen=True)
class PolicyGradient:
    """Reverse KL of each token and the policy gradient of what followed it; `targets.credit` holds what it earned.

    `losses.minillm.minillm_loss` is the same for a whole batch, written out. Source: Gu et al., arXiv:2306.08543.
    """

    settings: PolicyConfig
    divergence: Divergence = reverse_kl
    figures = ("policy/clip_frac", "policy/long_term_nats")
    group_tokens = None

    @property
    def temperature(self) -> float:
        return self.settings.temperature

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats."""
        assert targets.credit is not None, "a policy gradient needs the tokens' credit"
        loss_N = self._long_term(student_NV, targets) if self.settings.long_term else student_NV.new_zeros(len(student_NV))
        if self.settings.single_step:
            loss_N = loss_N + targets.credit.reach_N * Match(self.divergence, self.temperature)(student_NV, targets)
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
    settings = TypeAdapter[Any](ObjectiveConfig).validate_python({"type": type, **options})
    if isinstance(settings, Matching):
        divergence = partial(DIVERGENCES[type], **settings.options) if settings.options else DIVERGENCES[type]
        return Match(divergence, settings.temperature, settings.support, settings.top_k)
    if isinstance(settings, PolicyConfig):
        return PolicyGradient(settings)
    if isinstance(
        settings, RankingConfig
    ):  # its credit holds the slope of the pairwise loss: the gradient is exact at one step
        return PolicyGradient(PolicyGradientConfig(temperature=settings.temperature))
    if isinstance(settings, SinkhornConfig):
        return Transport(settings)
    if isinstance(settings, KDConfig):
        return KD(settings.ratio, settings.temperature)
    return {"k2": K2, "supervised": Supervised}[type]()


def _of_labels(table_NV: Tensor, targets: TokenTargets) -> Tensor:
    return table_NV.gather(-1, targets.labels_N[:, None]).squeeze(-1)
