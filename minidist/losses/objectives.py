"""Objectives: the losses of a stream's tokens, one small class each, and the table from configuration class to objective."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from minidist import losses
from minidist.config import objectives as sections
from minidist.config.divergences import Divergences, Matching, SinkhornConfig
from minidist.config.objective import ObjectiveSection
from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.losses.estimators import k2
from minidist.losses.minillm import surrogate
from minidist.losses.support import Support, on_support, top_k_and_tail
from minidist.losses.targets import Divergence, Objective, TokenTargets
from minidist.losses.transport import Moved, Teacher, grouped_sinkhorn


@dataclass(frozen=True)
class Match(Objective):
    """A divergence between the student's and the teacher's distribution at each token.

    Args:
        divergence: [N, C] and [N, C] log-probabilities to [N] nats.
        temperature: divides both models' logits before the softmax; other than 1 needs the full vocabulary.
        support: classes of the divergence, see `losses.support.on_support`. None: the full vocabulary where the teacher's
            scores hold it, else all listed tokens and their tail.
        top_k: tokens that `support` lists of each model.
    """

    divergence: Divergence
    temperature: float = 1.0
    support: Support | None = None
    top_k: int = 0

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats. The labels are not used: the sum over the classes is exact."""
        return self.divergence(*self._tables(student_NV, targets))

    def _tables(self, student_NV: Tensor, targets: TokenTargets) -> tuple[Tensor, Tensor]:
        if targets.teacher_NV is not None:
            return on_support(student_NV, targets.teacher_NV, self.support or "full", self.top_k)
        ids_NK, logprobs_NK = targets.top_ids_NK, targets.top_logprobs_NK
        assert ids_NK is not None and logprobs_NK is not None, "no distribution to match"
        assert self.temperature == 1, "the tail of a top-K payload is known at temperature 1 only"
        listed = slice(self.top_k if self.support == "teacher" else None)
        return top_k_and_tail(student_NV, ids_NK[:, listed], logprobs_NK[:, listed])


@dataclass(frozen=True)
class K2(Objective):
    """Half the squared log-ratio at the sampled token; `losses.estimators.k2`.

    The tokens must be samples of the current student, at temperature 1 and not truncated.
    """

    temperature: ClassVar[float] = 1.0
    sampled: ClassVar[bool] = True

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] squared nats."""
        assert targets.teacher_logprob_N is not None, "no teacher log-probability of the labels"
        return k2(targets.of_labels(student_NV), targets.teacher_logprob_N)


@dataclass(frozen=True)
class Supervised(Objective):
    """Cross-entropy on the labels: -log q(label)."""

    temperature: float = 1.0
    sampled: ClassVar[bool] = True

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats."""
        return -targets.of_labels(student_NV)


@dataclass(frozen=True)
class Transport(Objective):
    """Optimal transport among the tokens of a group, beside a divergence at each token; `losses.transport.sinkhorn`.

    Source: Cui et al., SinKD, arXiv:2402.17110.
    """

    settings: SinkhornConfig
    figures = ("transport/moved", "transport/marginal_error")

    @property
    def temperature(self) -> float:
        return self.settings.temperature

    @property
    def group_tokens(self) -> int:
        return self.settings.group_tokens

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N]: the weighted distance, plus the paired divergence in nats."""
        loss_N = self.settings.weight * self._moved(student_NV, targets).distance_N
        if self.settings.paired == "none":
            return loss_N
        return loss_N + Match(getattr(losses, self.settings.paired), self.temperature)(student_NV, targets)

    @torch.no_grad()
    def explain(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N, 2]: transport cost of each token's distribution, and the marginal error of its group's plan."""
        moved = self._moved(student_NV, targets)
        return torch.stack([moved.distance_N, moved.marginal_error_N], -1)

    def _moved(self, student_NV: Tensor, targets: TokenTargets) -> Moved:
        assert targets.group_N is not None, "transport needs the groups of its tokens"
        teacher: Teacher | None = targets.teacher_NV
        if teacher is None:
            assert targets.top_ids_NK is not None and targets.top_logprobs_NK is not None, "no distribution to transport"
            teacher = targets.top_ids_NK, targets.top_logprobs_NK
        return grouped_sinkhorn(student_NV, teacher, targets.group_N, self.settings)


@dataclass(frozen=True)
class KD(Objective):
    """(1 - ratio) * cross-entropy on the labels + ratio * t^2 * KL(teacher || student), the divergence at temperature t, over
    the full vocabulary or top K and tail. Source: Hinton, Vinyals & Dean, arXiv:1503.02531, section 2."""

    ratio: float
    temperature: float = 1.0
    divergence: Divergence = forward_kl

    @property
    def sampled(self) -> bool:
        return self.ratio < 1

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats."""
        # student_NV is at the temperature; times the temperature it is the logits of temperature 1, up to a constant.
        sharp_NV = student_NV if self.temperature == 1 else torch.log_softmax(student_NV * self.temperature, -1)
        matched_N = Match(self.divergence, self.temperature)(student_NV, targets)
        return (1 - self.ratio) * Supervised()(sharp_NV, targets) + self.ratio * self.temperature**2 * matched_N


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """Reverse KL of each token plus a policy gradient, whose advantages and importance weights stand in `targets.credit`.

    `losses.minillm.minillm_loss` is the plain reference for a whole batch. Source: Gu et al., arXiv:2306.08543.
    """

    settings: sections.PolicyConfig
    divergence: Divergence = reverse_kl
    figures = ("policy/clip_frac", "policy/long_term_nats")
    sampled: ClassVar[bool] = True

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
        """[N, 2]: 1 where the clip stops the gradient, else 0; the policy-gradient term of the loss, nats."""
        loss_N = self._long_term(student_NV, targets)
        return torch.stack([(loss_N > self._long_term(student_NV, targets, bounded=False)).to(loss_N), loss_N], -1)

    def _long_term(self, student_NV: Tensor, targets: TokenTargets, *, bounded: bool = True) -> Tensor:
        credit, clip = targets.credit, self.settings.clip if bounded else None
        assert credit is not None
        student_N = targets.of_labels(student_NV)
        return surrogate(student_N, credit.old_logprob_N, credit.advantage_N, credit.weight_N, clip=clip)


def make_objective(config: ObjectiveSection) -> Objective:
    """The runtime objective of a configuration's `objective` section."""
    return OBJECTIVES[type(config)](config)


def divergence(config: Matching) -> Divergence:
    """The function of minidist.losses that has the name of the configuration's type, with its options."""
    function, options = getattr(losses, config.type), config.options
    return partial(function, **options) if options else function


def _match(config: Matching) -> Match:
    return Match(divergence(config), config.temperature, config.support, config.top_k)


OBJECTIVES: dict[type[ObjectiveSection], Callable[[Any], Objective]] = {
    **dict.fromkeys(get_args(Divergences), _match),
    SinkhornConfig: Transport,
    sections.K2Config: lambda _: K2(),
    sections.SupervisedConfig: lambda _: Supervised(),
    sections.KDConfig: lambda config: KD(config.ratio, config.temperature),
    sections.MiniLLMConfig: PolicyGradient,
    sections.PolicyGradientConfig: PolicyGradient,
    # The credit of ranked answers is the slope of the pairwise loss, so that the gradient is exact at one step.
    sections.RankingConfig: lambda config: PolicyGradient(sections.PolicyGradientConfig(temperature=config.temperature)),
}
"""The runtime objective of each configuration class. A divergence's runtime is the function of its name in minidist.losses."""
