"""`evaluation`: what is measured on held-out prompts while training."""

from pydantic import Field

from minidist.config.base import Section


class EvaluationConfig(Section):
    """What is measured on held-out prompts while training."""

    every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; distillation makes one more before the first step and after the last. None: none."""
    prompts: int = Field(default=128, ge=1)
    """How many of the validation rows."""
    patience: int | None = Field(default=None, ge=1)
    """sft: stop when the validation loss has not fallen for so many evaluations, and keep the best weights."""
