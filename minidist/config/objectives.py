"""`objective`: the losses of a stream's tokens, one class each, whose defaults are the recommended settings."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from minidist.config.divergences import Divergences, SinkhornConfig
from minidist.config.objective import ObjectiveSection
from minidist.types import Payload


class K2Config(ObjectiveSection):
    """Half the squared log-ratio of student and teacher at the sampled token. Its expected gradient over the student's own
    samples is that of the reverse KL, from one teacher log-probability a token."""

    type: Literal["k2"] = "k2"
    temperature: ClassVar[float] = 1.0
    needs: ClassVar[Payload] = Payload.SAMPLED
    learns_from: ClassVar = "own_samples"
    on_mixture: ClassVar[bool] = False


class SupervisedConfig(ObjectiveSection):
    """Cross-entropy on the tokens of the text; needs no teacher."""

    type: Literal["supervised"] = "supervised"
    temperature: ClassVar[float] = 1.0
    learns_from: ClassVar = "given_text"


class KDConfig(ObjectiveSection):
    """(1 - ratio) * cross-entropy on the tokens of the text + ratio * temperature^2 * KL(teacher || student) with both models
    softened by the temperature, on given text (Hinton, Vinyals & Dean, arXiv:1503.02531). On plain text: the regulariser of
    MiniLLM's code."""

    type: Literal["kd"] = "kd"
    needs: ClassVar[Payload] = Payload.TOP_K
    learns_from: ClassVar = "given_text"
    fused: ClassVar[bool] = True
    ratio: float = Field(default=0.5, ge=0, le=1)
    """Share of the divergence."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits in the divergence, whose gradient the factor temperature^2 keeps at the same scale; the
    cross-entropy is at temperature 1."""


class PolicyConfig(ObjectiveSection):
    """Common fields of policy gradients. The loss of a token is KL(student || teacher) at its position, differentiated exactly,
    minus its fixed advantage times the probability ratio of the trained student to the sampled distribution."""

    learns_from: ClassVar = "own_samples"
    credited_by: ClassVar = "policy"
    single_step: bool = True
    """Include KL(student || teacher) of every token, with its gradient through the full vocabulary."""
    long_term: bool = True
    """Include the policy gradient."""
    credit: Literal["next", "own"] = "next"
    """Rewards in the return of a token: those from the next token on (next), or also its own (own, lmops), which counts its own
    twice if single_step is set."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of rewards by their distance; 0.95 in lmops."""
    length_norm: bool = True
    """Divide a return by its number of rewards; an empty return is 0."""
    whitening: Literal["none", "masked", "padded"] = "none"
    """Shift and scale the advantages of a collection to mean 0 and variance 1: over its tokens (masked), or over its table of
    rows x rollout.max_new_tokens with zeros as padding (padded, lmops). none: leave them."""
    importance: Literal["one_step", "per_decision", "none"] = "one_step"
    """Correction for samples from the mixture instead of the student. one_step: weight of each token by its ratio
    q / (a p + (1 - a) q). per_decision: weight of each reward by the product of the ratios up to it (unbiased without
    length_norm, with a variance that grows with the length). none: no correction."""
    clip: float | None = Field(default=None, gt=0, lt=1)
    """PPO's bound on the ratio, from 1 - clip to 1 + clip, including the importance weight; 0.2 in lmops. None: no bound."""
    reward_scale: float = Field(default=1.0, gt=0)
    """Divides the rewards log p - log q; 0.5 in lmops."""
    reward_clip: float | None = Field(default=None, gt=0)
    """Bound on the absolute value of a reward after scaling; 100 in lmops. None: no bound."""
    inner_epochs: int = Field(default=1, ge=1)
    """Passes over a collection; 4 in lmops. Rewards and ratios refer to the student that wrote the collection."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps of one pass, each on an equal part of the rows of the collection."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits in rewards, ratios and the single step; must equal the sampling temperature."""

    @model_validator(mode="after")
    def _exact(self) -> "PolicyConfig":
        if not (self.single_step or self.long_term):
            raise ValueError("objective.single_step and objective.long_term are both false: nothing to learn; set one of them")
        if self.inner_epochs > 1 and self.clip is None and self.importance == "none":
            old = f"objective.inner_epochs {self.inner_epochs} trains on text of an earlier student"
            raise ValueError(f"{old}: set objective.clip=0.2, or objective.importance=one_step")
        return self

    @property
    def needs(self) -> Payload:
        """The poorest payload that serves."""
        return Payload.TOP_K if self.single_step else Payload.SAMPLED

    @property
    def parts(self) -> int:
        """Parts into which the rows of a collection are divided, one optimizer step each."""
        return self.minibatches

    @property
    def updates(self) -> int:
        """Optimizer steps on one collection."""
        return self.inner_epochs * self.minibatches

    @property
    def fused(self) -> bool:
        """Whether learner.kernel=liger forms any part of the loss."""
        return self.single_step


class MiniLLMConfig(PolicyConfig):
    """MiniLLM (Gu et al., arXiv:2306.08543): the gradient of the sequence-level reverse KL as an exact single step plus a
    policy gradient for the long term, on the student's own or teacher-mixed samples."""

    type: Literal["minillm"] = "minillm"
    teacher_mix: ClassVar[float] = 0.2
    presets: ClassVar = {
        "lmops": {"credit": "own", "gamma": 0.95, "whitening": "padded", "inner_epochs": 4}
        | {"clip": 0.2, "reward_scale": 0.5, "reward_clip": 100.0}
    }
    preset: Literal["paper", "lmops"] = "paper"
    """Defaults of the other fields: the paper's equations (paper), or the original code microsoft/LMOps (lmops). Both sample
    with rollout.teacher_mix=0.2; the original code also trains on plain text, here a further stream of objective kd (ratio
    0.5)."""


class PolicyGradientConfig(PolicyConfig):
    """Policy gradient from one teacher log-probability a token: the advantage of a token is its own reward log p - log q
    (Thinking Machines, https://thinkingmachines.ai/blog/on-policy-distillation). With one optimizer step a collection the
    gradient is that of k2; with more steps, or a clip, it is PPO's."""

    type: Literal["policy_gradient"] = "policy_gradient"
    single_step: Literal[False] = False
    """Always false; objective minillm has the single step."""
    credit: Literal["next", "own"] = "own"
    """Rewards in the return of a token: its own and later ones (own), or only later ones (next)."""
    gamma: float = Field(default=0.0, ge=0, le=1)
    """Discount of later rewards; at 0 a return is the token's own reward."""
    length_norm: bool = False
    """Divide a return by its number of rewards."""


class RankingConfig(ObjectiveSection):
    """Trains the student to rank its answers to a prompt as the teacher does (f-DPO family, arXiv:2309.16240, on mean
    log-probabilities and without a reference model). Needs rollout.samples_per_prompt of at least 2."""

    type: Literal["ranking"] = "ranking"
    needs: ClassVar[Payload] = Payload.SAMPLED
    learns_from: ClassVar = "own_samples"
    credited_by: ClassVar = "ranking"
    samples: ClassVar[int] = 2
    f: Literal["reverse_kl", "forward_kl", "jsd", "alpha"] = "reverse_kl"
    """Divergence whose derivative is compared: log u, -1 / u, log(2 u / (1 + u)) or (1 - u^-alpha) / alpha, with u the
    geometric mean of an answer's token probabilities."""
    beta: float = Field(default=2.0, gt=0)
    """Slope of the sigmoid of the difference."""
    alpha: float = Field(default=0.5, gt=0, lt=1)
    """Exponent of f alpha, between the reverse KL (0) and the forward KL (1)."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits; must equal the sampling temperature."""


def _not_k1_or_k3(tree: Any) -> Any:
    """Refuse known estimators of the reverse KL whose gradient is not the reverse KL's."""
    kind = tree.get("type") if isinstance(tree, dict) else None
    wrong = {
        "k1": "whose expected gradient over the student's samples is zero",
        "k3": "whose expected gradient over the student's samples is the forward KL's, not the reverse KL's",
    }
    if isinstance(kind, str) and kind in wrong:
        raise ValueError(f"objective.type {kind} is an estimator {wrong[kind]}; set objective.type=k2 or policy_gradient")
    return tree


_OtherObjectives = (
    SinkhornConfig | K2Config | KDConfig | MiniLLMConfig | PolicyGradientConfig | RankingConfig | SupervisedConfig
)
ObjectiveConfig = Annotated[
    Annotated[Divergences | _OtherObjectives, Field(discriminator="type")], BeforeValidator(_not_k1_or_k3)
]
