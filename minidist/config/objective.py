"""What every objective declares about itself: callers read the declaration and never ask which objective it is."""

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from minidist.config.base import Section
from minidist.types import Payload


class ObjectiveSection(Section):
    """The loss of one stream's tokens.

    Each subclass has a `temperature` (nats are taken of softmax(logits / temperature)): a field, or the constant 1.
    """

    type: str
    temperature: ClassVar[float]
    needs: ClassVar[Payload | None] = None
    """The poorest teacher payload that serves; None: no teacher."""
    learns_from: ClassVar[Literal["any_text", "own_samples", "given_text"]] = "any_text"
    """Text on which the loss is valid: any text, samples of the current student only, or given text only."""
    matches_teacher: ClassVar[bool] = False
    """Whether the loss is a divergence from the teacher's distribution at each token."""
    on_mixture: ClassVar[bool] = True
    """Whether the loss is valid on teacher-mixed samples."""
    teacher_mix: ClassVar[float] = 0.0
    """What rollout.teacher_mix is when the configuration leaves it out."""
    samples: ClassVar[int] = 1
    """Fewest answers to one prompt."""
    parts: ClassVar[int] = 1
    """Parts into which the rows of a collection are divided, one optimizer step each."""
    updates: ClassVar[int] = 1
    """Optimizer steps on one collection."""
    listed: ClassVar[int | None] = None
    """Classes that the objective lists of each model (its top_k), where it runs over a list."""
    fused: ClassVar[bool] = False
    """Whether learner.kernel=liger forms any part of the loss."""
    credited_by: ClassVar[Literal["policy", "ranking"] | None] = None
    """Credit method that fixes what each sampled token earns before the optimizer steps; None: the loss needs no credit."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Defaults of other fields, by the value of the field `preset`."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, tree: Any) -> Any:
        """Add the preset's values as defaults."""
        return cls.presets.get(str(tree.get("preset")), {}) | tree if isinstance(tree, dict) else tree

    def demand(self, key: str) -> str:
        """The setting that decides `needs`, for error messages; `key` is the dotted name of this section."""
        return f"{key}.type {self.type}"
