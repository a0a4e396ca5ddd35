"""Objectives that pull the student's distribution at each token to the teacher's: one class a divergence, which holds the name,
options, defaults and ranges of the function of that name in minidist.losses."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.objective import ObjectiveSection
from minidist.types import Payload


class Matching(ObjectiveSection):
    """What all divergences share: the temperature of both softmaxes, and the classes they run over."""

    matches_teacher: ClassVar[bool] = True

    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits before the softmax. Other than 1 needs the full vocabulary."""
    support: Literal["full", "teacher", "student", "union"] | None = None
    """Classes of the divergence: the full vocabulary, or the `top_k` likeliest tokens of the teacher, of the student, or of
    either, with all other tokens as one class, the tail (a lower bound of the divergence over the full vocabulary). None: the
    full vocabulary with teacher.payload hidden, all listed tokens and the tail with top_k."""
    top_k: int = Field(default=64, ge=1)
    """Tokens of each model that support teacher, student or union lists."""

    @property
    def needs(self) -> Payload:
        """The poorest teacher payload that serves."""
        return Payload.TOP_K if self.support in (None, "teacher") else Payload.HIDDEN

    @property
    def listed(self) -> int | None:
        """`top_k`, where the divergence runs over a list."""
        return None if self.support in (None, "full") else self.top_k

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function `minidist.losses.<type>`."""
        return self.model_dump(exclude={*Matching.model_fields})

    def demand(self, key: str) -> str:
        return super().demand(key) if self.support is None else f"{key}.support {self.support} of {self.type}"


class ForwardKLConfig(Matching):
    """KL(teacher || student): covers all modes of the teacher."""

    type: Literal["forward_kl"] = "forward_kl"
    fused: ClassVar[bool] = True


class ReverseKLConfig(Matching):
    """KL(student || teacher): keeps to modes of the teacher (Gu et al., MiniLLM, arXiv:2306.08543)."""

    type: Literal["reverse_kl"] = "reverse_kl"
    fused: ClassVar[bool] = True


class JeffreysConfig(Matching):
    """KL(teacher || student) + KL(student || teacher)."""

    type: Literal["jeffreys"] = "jeffreys"


class TotalVariationConfig(Matching):
    """Half the sum over classes of |p - q| (Wen et al., f-DISTILL, arXiv:2307.15190)."""

    type: Literal["total_variation"] = "total_variation"


class JSDConfig(Matching):
    """Generalised Jensen-Shannon divergence, beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, p the
    teacher (Agarwal et al., GKD, arXiv:2306.13649)."""

    type: Literal["jsd"] = "jsd"
    fused: ClassVar[bool] = True
    beta: float = 0.5
    """Weight of the teacher, between 0 and 1, both excluded: towards both ends the divergence vanishes."""
    endpoint: Literal["refuse", "kl"] = "refuse"
    """kl: also accept beta 0 (the forward KL) and beta 1 (the reverse KL), as other libraries do, with a jump."""

    @model_validator(mode="after")
    def _beta_in_range(self) -> "JSDConfig":
        if not (0 < self.beta < 1 or (self.endpoint == "kl" and self.beta in (0, 1))):
            outside = f"beta of jsd is {self.beta:g}; set a value between 0 and 1. At 0 and 1 the divergence is 0"
            remedy = "for a KL there, set type=jsd_normalised (no jump) or endpoint=kl (a jump, as in other libraries)"
            raise ValueError(f"{outside}: {remedy}")
        return self


class JSDNormalisedConfig(Matching):
    """`jsd` / (beta (1 - beta)): from the forward KL at beta 0 to the reverse KL at beta 1 without a jump."""

    type: Literal["jsd_normalised"] = "jsd_normalised"
    beta: float = Field(default=0.5, ge=0, le=1)
    """Weight of the teacher in the mixture, from 0 (forward KL) to 1 (reverse KL)."""


class SkewForwardKLConfig(Matching):
    """KL(p || alpha p + (1 - alpha) q), p the teacher (Ko et al., DistiLLM, arXiv:2402.03898)."""

    type: Literal["skew_forward_kl"] = "skew_forward_kl"
    alpha: float = Field(default=0.1, ge=0, lt=1)
    """Share of the teacher in the mixture, from 0 (the forward KL) to below 1 (where the divergence vanishes); 0.1 is
    published."""


class SkewReverseKLConfig(Matching):
    """KL(q || (1 - alpha) p + alpha q), p the teacher (Ko et al., DistiLLM, arXiv:2402.03898)."""

    type: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: float = Field(default=0.1, ge=0, lt=1)
    """Share of the student in the mixture, from 0 (the reverse KL) to below 1 (where the divergence vanishes); 0.1 is
    published."""
    detach_mixture: bool = False
    """Pass no gradient through the mixture, as DistiLLM-2's code does."""


class AKLConfig(Matching):
    """Forward and reverse KL, weighted by where the two models differ: in the head or in the tail of the teacher's distribution
    (Wu et al., arXiv:2404.02657)."""

    type: Literal["akl"] = "akl"
    mu: float = Field(default=0.5, gt=0, le=1)
    """Probability mass of the head."""
    head_rule: Literal["released", "paper"] = "released"
    """released: the longest head of at most mu of the mass (the authors' code). paper: the shortest head of at least mu."""


class AlphaBetaConfig(Matching):
    """The alpha-beta divergence (Wang et al., ABKD, arXiv:2505.04560): (1, 0) is the forward KL, (0, 1) the reverse KL."""

    type: Literal["alpha_beta"] = "alpha_beta"
    alpha: float = Field(default=0.2, ge=-1, le=2)
    """Exponent of the teacher; 0.2 with beta 0.7 is published for GPT-2. Larger exponents, of either sign, overflow where a
    probability is small."""
    beta: float = Field(default=0.7, ge=-1, le=2)
    """Exponent of the student."""

    @model_validator(mode="after")
    def _sum_in_range(self) -> "AlphaBetaConfig":
        if (total := self.alpha + self.beta) < 0:
            below = f"alpha + beta of alpha_beta is {total:g}; a sum below 0 overflows where a probability is small"
            raise ValueError(f"{below}: raise alpha or beta (0.2 and 0.7 are published)")
        return self


class ToDiConfig(Matching):
    """The forward term of each class weighted by w = p / (p + q), its reverse term by 1 - w, w without gradient (Jung et al.,
    arXiv:2505.16297)."""

    type: Literal["todi"] = "todi"


class EntropyGatedConfig(Matching):
    """Reverse KL, plus the forward KL at tokens where the teacher is uncertain (arXiv:2603.07079)."""

    type: Literal["entropy_gated"] = "entropy_gated"
    threshold: float = Field(default=1.0, ge=0)
    """Entropy of the teacher, nats, above which the forward KL is added. The published value is unknown; choose a value for the
    task."""


Divergences = (
    ReverseKLConfig
    | ForwardKLConfig
    | JeffreysConfig
    | TotalVariationConfig
    | JSDConfig
    | JSDNormalisedConfig
    | SkewForwardKLConfig
    | SkewReverseKLConfig
    | AKLConfig
    | AlphaBetaConfig
    | ToDiConfig
    | EntropyGatedConfig
)


class TransportConfig(Section):
    """Options of `minidist.losses.sinkhorn`."""

    scale: float = Field(default=1.0, gt=0)
    """Second factor of the transport, beside weight; 0.001 in the authors' code, where the loss is a sum over the batch and not
    a mean over tokens."""
    cost: Literal["l1", "l2"] = "l1"
    """Distance between two distributions."""
    epsilon: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """Weight of the entropy that smooths the transport; 0.1 is published."""
    iterations: int = Field(default=20, ge=1)
    """Most pairs of row and column scalings."""
    tolerance: float | None = Field(default=None, gt=0)
    """Stop as soon as no row sum of the plan is further than this from its target. None: all iterations."""
    gradient: Literal["unrolled", "envelope"] = "unrolled"
    """unrolled: through all iterations (the authors' code). envelope: with the plan held fixed, which is the gradient of the
    smoothed transport itself."""
    debias: bool = False
    """Subtract half of each side's transport to itself, so that equal distributions cost nothing."""


class SinkhornConfig(TransportConfig, ObjectiveSection):
    """Optimal transport between the student's and the teacher's distributions at the tokens of a group, beside a divergence at
    each token (Cui et al., SinKD, arXiv:2402.17110, with groups of an answer's tokens in place of a batch of examples).

    Transport alone does not see which token is which: a student with the teacher's distributions in another order has loss 0.
    """

    type: Literal["sinkhorn"] = "sinkhorn"
    presets: ClassVar = {"released": {"temperature": 2.0, "scale": 0.001}}
    preset: Literal["released"] | None = None
    """released: temperature 2 and scale 0.001 as defaults, as in the authors' code. None: the defaults below."""
    paired: Literal["forward_kl", "reverse_kl", "none"] = "forward_kl"
    """Divergence at each token, added to the transport."""
    weight: float = Field(default=0.8, ge=0)
    """Factor of the transport; 0.8 is published."""
    group_tokens: int = Field(default=32, ge=2)
    """Most consecutive tokens of one answer in a group. Cost grows with the square of the group size."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits; 2 in the authors' code. Other than 1 needs the full vocabulary."""

    @property
    def needs(self) -> Payload:
        """The poorest teacher payload that serves."""
        return Payload.HIDDEN if self.debias or self.cost == "l2" else Payload.TOP_K
