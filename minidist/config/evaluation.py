"""`evaluation`: measurements on held-out prompts during training."""

from pydantic import Field

from minidist.config.base import Section


class EvaluationConfig(Section):
    """Measurements on held-out prompts during training."""

    every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; distillation also evaluates before the first step and after the last. None: no evaluations."""
    prompts: int = Field(default=128, ge=1)
    """Number of validation rows, from the first."""
    temperature: float = Field(default=1.0, ge=0)
    """distill only: sampling temperature of the answers; 0 is greedy. Divergences are measured at 1 alone, and are left out
    elsewhere."""
    patience: int | None = Field(default=None, ge=1)
    """sft only: stop after this number of evaluations without a lower validation loss, and keep the best weights. None: train
    for run.steps."""
