"""Objectives that draw the student's distribution at each token to the teacher's: one class a divergence."""

from typing import Any, Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.teacher import Payload


class Matching(Section):
    """What all divergences share: the softmax they are taken of, and the classes they run over."""

    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits before the softmax. Other than 1 it needs the full vocabulary."""
    support: Literal["full", "teacher", "student", "union"] | None = None
    """Classes it runs over: the full vocabulary, the `top_k` likeliest of the teacher, of the student, or of either; all the
    rest is one class, the tail, so what is measured is a lower bound. None: full from hidden states, and all that a top_k
    payload lists."""
    top_k: int = Field(default=64, ge=1)
    """How many classes support teacher, student or union lists of each model."""

    @property
    def needs(self) -> Payload:
        """The poorest payload that serves."""
        return "top_k" if self.support in (None, "teacher") else "hidden"

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the divergence beside the two tables."""
        return self.model_dump(exclude={"type", *Matching.model_fields})


class ForwardKLConfig(Matching):
    """KL(teacher || student): covers all the teacher does."""

    type: Literal["forward_kl"] = "forward_kl"


class ReverseKLConfig(Matching):
    """KL(student || teacher): keeps to what the teacher does (Gu et al., MiniLLM, arXiv:2306.08543)."""

    type: Literal["reverse_kl"] = "reverse_kl"


class JeffreysConfig(Matching):
    """KL(teacher || student) + KL(student || teacher)."""

    type: Literal["jeffreys"] = "jeffreys"


class TotalVariationConfig(Matching):
    """Half the sum of |p - q| (Wen et al., f-DISTILL, arXiv:2307.15190)."""

    type: Literal["total_variation"] = "total_variation"


class JSDConfig(Matching):
    """Generalised Jensen-Shannon divergence, beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, p the
    teacher (Agarwal et al., GKD, arXiv:2306.13649)."""

    type: Literal["jsd"] = "jsd"
    beta: float = 0.5
    """The teacher's weight, between 0 and 1; towards both ends the divergence vanishes."""
    endpoint: Literal["refuse", "kl"] = "refuse"
    """kl: beta 0 is the forward KL and beta 1 the reverse KL, as in other libraries: a jump."""

    @model_validator(mode="after")
    def _in_range(self) -> "JSDConfig":
        if not (0 < self.beta < 1 or (self.endpoint == "kl" and self.beta in (0, 1))):
            raise ValueError(
                f"objective.beta of jsd is {self.beta:g}; it lies between 0 and 1, and at both it vanishes: use objective.type "
                "jsd_normalised, which goes on to the KLs, or set objective.endpoint=kl for the jump that libraries make"
            )
        return self


class JSDNormalisedConfig(Matching):
    """`jsd` over beta (1 - beta): from the forward KL at beta 0 to the reverse KL at 1 without a jump."""

    type: Literal["jsd_normalised"] = "jsd_normalised"
    beta: float = 0.5
    """The teacher's weight in the mixture, from 0 to 1."""

    @model_validator(mode="after")
    def _in_range(self) -> "JSDNormalisedConfig":
        if not 0 <= self.beta <= 1:
            raise ValueError(f"objective.beta of jsd_normalised is {self.beta:g}; set it from 0 (forward KL) to 1 (reverse KL)")
        return self


class SkewConfig(Matching):
    """What the skew divergences share."""

    alpha: float = 0.1
    """Share in the mixture of the distribution that the expectation is of, from 0 (the KL itself) to below 1."""

    @model_validator(mode="after")
    def _in_range(self) -> "SkewConfig":
        if not 0 <= self.alpha < 1:
            raise ValueError(
                f"objective.alpha of a skew divergence is {self.alpha:g}; set it from 0 (the KL itself) to below 1, where the "
                "mixture is the distribution itself; 0.1 is the published value"
            )
        return self


class SkewForwardKLConfig(SkewConfig):
    """KL(p || alpha p + (1 - alpha) q), p the teacher (Ko et al., DistiLLM, arXiv:2402.03898)."""

    type: Literal["skew_forward_kl"] = "skew_forward_kl"


class SkewReverseKLConfig(SkewConfig):
    """KL(q || (1 - alpha) p + alpha q), p the teacher (Ko et al., DistiLLM, arXiv:2402.03898)."""

    type: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    detach_mixture: bool = False
    """Let no gradient through the mixture, as DistiLLM-2's code does."""


class AKLConfig(Matching):
    """Forward and reverse KL, weighed by where the two models differ: in the teacher's head or in its tail (Wu et al.,
    arXiv:2404.02657)."""

    type: Literal["akl"] = "akl"
    mu: float = 0.5
    """Mass of the head, above 0, at most 1."""
    head_rule: Literal["released", "paper"] = "released"
    """Longest head of at most mu of the mass (the authors' code), or the shortest of at least mu."""

    @model_validator(mode="after")
    def _in_range(self) -> "AKLConfig":
        if not 0 < self.mu <= 1:
            raise ValueError(f"objective.mu of akl is {self.mu:g}; it is the mass of the head: set it above 0 and at most 1")
        return self


class AlphaBetaConfig(Matching):
    """The alpha-beta divergence (Wang et al., ABKD, arXiv:2505.04560): (1, 0) is the forward KL, (0, 1) the reverse KL."""

    type: Literal["alpha_beta"] = "alpha_beta"
    alpha: float = 0.2
    """Exponent of the teacher; 0.2 with beta 0.7 is published for GPT-2."""
    beta: float = 0.7
    """Exponent of the student."""

    @model_validator(mode="after")
    def _in_range(self) -> "AlphaBetaConfig":
        if not (-1 <= self.alpha <= 2 and -1 <= self.beta <= 2 and self.alpha + self.beta >= 0):
            raise ValueError(
                f"objective.alpha and objective.beta of alpha_beta are {self.alpha:g} and {self.beta:g}; exponents beyond "
                "-1 and 2, or of a sum below 0, overflow where a probability is small: set both from -1 to 2, their sum not "
                "negative (0.2 and 0.7 are published)"
            )
        return self


class ToDiConfig(Matching):
    """Each class's forward term by w = p / (p + q), its reverse term by 1 - w, w held fixed (Jung et al., arXiv:2505.16297)."""

    type: Literal["todi"] = "todi"


class EntropyGatedConfig(Matching):
    """Reverse KL, and the forward KL as well where the teacher is unsure (arXiv:2603.07079)."""

    type: Literal["entropy_gated"] = "entropy_gated"
    threshold: float = Field(default=1.0, ge=0)
    """Entropy of the teacher, nats, above which the forward KL counts. The paper's value is not known here: set your own."""


class SinkhornConfig(Section):
    """Optimal transport between the student's and the teacher's distributions at the tokens of a group, beside a divergence at
    each token (Cui et al., SinKD, arXiv:2402.17110, with groups of an answer's tokens in place of a batch of examples).

    Transport alone is blind to which token is which: a student whose outputs are the teacher's in another order costs nothing.
    """

    type: Literal["sinkhorn"] = "sinkhorn"
    preset: Literal["released"] | None = None
    """released: temperature 2 and scale 0.001, as in the authors' code, where nothing else is given."""
    paired: Literal["forward_kl", "reverse_kl", "none"] = "forward_kl"
    """The divergence at each token beside it."""
    weight: float = Field(default=0.8, ge=0)
    """Factor of what each token's distribution is moved by; 0.8 is published."""
    scale: float = Field(default=1.0, gt=0)
    """Another one; 0.001 in the authors' code, whose sum over a batch grows with it; here it is a mean of tokens."""
    group_tokens: int = Field(default=32, ge=2)
    """Most consecutive tokens of one answer that are transported together. Cost grows with their square."""
    cost: Literal["l1", "l2"] = "l1"
    """Distance between two distributions."""
    epsilon: float = 0.1
    """Strength of the entropy that smooths the transport: above 0."""
    iterations: int = Field(default=20, ge=1)
    """Most rounds of the algorithm."""
    tolerance: float | None = Field(default=None, gt=0)
    """Stop once no row of the plan is further than this from its share. None: all iterations."""
    gradient: Literal["unrolled", "envelope"] = "unrolled"
    """Through all rounds (the authors' code), or with the plan held fixed (that of the smoothed transport itself)."""
    debias: bool = False
    """Subtract half of each side's transport to itself, so that equal distributions cost nothing."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits; 2 in the authors' code. Other than 1 it needs the full vocabulary."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """The preset's values where none are given."""
        released = isinstance(given, dict) and given.get("preset") == "released"
        return {"temperature": 2.0, "scale": 0.001} | given if released else given

    @model_validator(mode="after")
    def _in_range(self) -> "SinkhornConfig":
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"objective.epsilon of sinkhorn is {self.epsilon:g}; set it above 0, finite (0.1 is published)")
        return self

    @property
    def needs(self) -> Payload:
        """The poorest payload that serves."""
        return "hidden" if self.debias or self.cost == "l2" else "top_k"

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the transport beside the tables."""
        return self.model_dump(include={"scale", "cost", "epsilon", "iterations", "tolerance", "gradient", "debias"})


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
