"""`objective`: the loss a stream's tokens are trained on, one class each, its defaults the vetted setting."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from minidist.config.base import Section
from minidist.config.divergences import Divergences, SinkhornConfig
from minidist.config.teacher import Payload


class K2Config(Section):
    """Half the squared log-ratio of student and teacher at the sampled token: its gradient is that of the reverse KL in
    expectation over the student's own samples, from one log-probability a token."""

    type: Literal["k2"] = "k2"

    @property
    def needs(self) -> Payload:
        """The poorest payload that serves."""
        return "sampled"


class SupervisedConfig(Section):
    """Cross-entropy on the tokens of the text itself; no teacher is asked."""

    type: Literal["supervised"] = "supervised"

    @property
    def needs(self) -> Payload | None:
        """The poorest payload that serves; None: no teacher."""
        return None


class KDConfig(Section):
    """(1 - ratio) * cross-entropy on the text's own tokens + ratio * temperature^2 * KL(teacher || student), both softened by
    the temperature, on given text (Hinton, Vinyals & Dean, arXiv:1503.02531); with plain text, the regulariser of MiniLLM's
    code."""

    type: Literal["kd"] = "kd"
    ratio: float = Field(default=0.5, ge=0, le=1)
    """Share of the divergence."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits in the divergence, whose gradient its square keeps at one size; the cross-entropy is at 1."""

    @property
    def needs(self) -> Payload:
        """The poorest payload that serves."""
        return "top_k"


class PolicyConfig(Section):
    """What policy gradients share. Each token's loss is KL(student || teacher) at that position, differentiated as it stands,
    minus its fixed advantage times the ratio of the student that learns to the distribution that was sampled."""

    type: str
    single_step: bool = True
    """KL(student || teacher) of every token, with its gradient through the whole vocabulary."""
    long_term: bool = True
    """The policy gradient."""
    credit: Literal["next", "own"] = "next"
    """Rewards that a token's return counts: from the next token on (next), or its own as well (own, lmops), which with the
    single step counts it twice."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of the rewards by their distance; 0.95 in lmops."""
    length_norm: bool = True
    """Divide a return by the number of rewards in it; a return of none is 0."""
    whitening: Literal["none", "masked", "padded"] = "none"
    """Shift and scale the advantages of a collection to mean 0 and variance 1: over its tokens (masked), or over its table of
    rows times rollout.max_new_tokens, zeros in the padding (padded, lmops)."""
    importance: Literal["one_step", "per_decision", "none"] = "one_step"
    """Correction for sampling from the mixture instead of the student: the token's own ratio q / (a p + (1 - a) q); each reward
    by the product of the ratios up to it (no bias without length_norm, and a variance that grows with the length); or none."""
    clip: float | None = Field(default=None, gt=0, lt=1)
    """PPO's bound on the ratio, 1 - clip to 1 + clip, the importance weight included; 0.2 in lmops. None: no bound."""
    reward_scale: float = Field(default=1.0, gt=0)
    """Divides the rewards log p - log q; 0.5 in lmops."""
    reward_clip: float | None = Field(default=None, gt=0)
    """Largest size of a reward after scaling; 100 in lmops. None: no bound."""
    inner_epochs: int = Field(default=1, ge=1)
    """Passes over a collection; 4 in lmops. Rewards and ratios keep the student that wrote it."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps of one pass, each on an equal part of the collection's rows."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits, in rewards, ratios and the single step; that of the sampling."""

    @model_validator(mode="after")
    def _exact(self) -> "PolicyConfig":
        if not (self.single_step or self.long_term):
            raise ValueError("objective.single_step and objective.long_term are both false: nothing to learn; set one of them")
        if self.inner_epochs > 1 and self.clip is None and self.importance == "none":
            raise ValueError(
                f"objective.inner_epochs {self.inner_epochs} trains on text of an older student: set objective.clip=0.2, or "
                "objective.importance=one_step"
            )
        return self

    @property
    def needs(self) -> Payload:
        """The poorest payload that serves."""
        return "top_k" if self.single_step else "sampled"

    @property
    def updates(self) -> int:
        """Optimizer steps on one collection."""
        return self.inner_epochs * self.minibatches


_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "lmops": {
        "credit": "own",
        "gamma": 0.95,
        "whitening": "padded",
        "clip": 0.2,
        "reward_scale": 0.5,
        "reward_clip": 100.0,
        "inner_epochs": 4,
    },
}


class MiniLLMConfig(PolicyConfig):
    """MiniLLM (Gu et al., arXiv:2306.08543): the gradient of the sequences' reverse KL as an exact single step and a policy
    gradient over the long term, on the student's own or teacher-mixed samples."""

    type: Literal["minillm"] = "minillm"
    preset: Literal["paper", "lmops"] = "paper"
    """The defaults of all that follows: the paper's equations, or what the original code (microsoft/LMOps) does. Both sample
    with rollout.teacher_mix=0.2; lmops also trains on plain text, with a stream beside of objective kd (ratio 0.5)."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """The preset's values where none are given."""
        if not isinstance(given, dict):
            return given
        return _PRESETS.get(str(given.get("preset", "paper")), {}) | given


class PolicyGradientConfig(PolicyConfig):
    """Policy gradient from one log-probability of the teacher a token: a token's advantage is its own reward log p - log q,
    nothing else (Thinking Machines, On-policy distillation, 2025). At one step a collection its gradient is that of k2; with
    more of them, or a clip, it is PPO's."""

    type: Literal["policy_gradient"] = "policy_gradient"
    single_step: Literal[False] = False
    """KL(student || teacher) of every token is objective minillm."""
    credit: Literal["next", "own"] = "own"
    """Rewards that a token's return counts: its own as well (own), or only those after it (next)."""
    gamma: float = Field(default=0.0, ge=0, le=1)
    """Discount of the rewards that follow; at 0 a token's own reward is all."""
    length_norm: bool = False
    """Divide a return by the number of rewards in it."""


class RankingConfig(Section):
    """Several answers of the student to a prompt, to be found likely in the teacher's order (f-DPO family, arXiv:2309.16240, on
    mean log-probabilities and without a reference model). Needs rollout.samples_per_prompt of 2 and more."""

    type: Literal["ranking"] = "ranking"
    f: Literal["reverse_kl", "forward_kl", "jsd", "alpha"] = "reverse_kl"
    """The divergence whose derivative is compared: log u, -1 / u, log(2 u / (1 + u)) or (1 - u^-alpha) / alpha, u the geometric
    mean of an answer's probabilities."""
    beta: float = Field(default=2.0, gt=0)
    """Slope of the sigmoid over the difference."""
    alpha: float = Field(default=0.5, gt=0, lt=1)
    """Of f alpha: 0 would be the reverse KL, 1 the forward KL."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits; that of the sampling."""

    @property
    def needs(self) -> Payload:
        """The poorest payload that serves."""
        return "sampled"


def _known(given: Any) -> Any:
    """Estimators that exist, and that would teach something else than their name says."""
    kind = given.get("type") if isinstance(given, dict) else None
    wrong = {
        "k1": "whose expected gradient over the student's samples is zero",
        "k3": "whose expected gradient over the student's samples is the forward KL's, not the reverse KL's",
    }
    if kind in wrong:
        raise ValueError(f"objective.type {kind} is an estimator {wrong[kind]}; set objective.type=k2 or policy_gradient")
    return given


ObjectiveConfig = Annotated[
    Annotated[
        Divergences
        | SinkhornConfig
        | K2Config
        | KDConfig
        | MiniLLMConfig
        | PolicyGradientConfig
        | RankingConfig
        | SupervisedConfig,
        Field(discriminator="type"),
    ],
    BeforeValidator(_known),
]
