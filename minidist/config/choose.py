"""`choose`: a setting of a comparison's cells that is chosen for each cell on validation prompts."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from minidist.config.base import FREE, Section
from minidist.config.data import SourceConfig


class ChooseConfig(Section):
    """Runs every cell with each value of a setting, evaluates these runs on validation prompts, and keeps the value that is
    best; the smaller value where two are equally good. Only runs with the chosen value are evaluated on the test prompts, and a
    run that was made for the choice is not made again. Values may be added later."""

    key: str = "learner.optimizer.lr"
    """Dotted name of the setting in the configuration of a cell; neither base nor a cell sets it."""
    values: Annotated[list[int | float], FREE] = Field(min_length=2)
    """Its values, from the smallest to the largest."""
    by: Annotated[Literal["reverse_kl", "forward_kl", "accuracy", "rouge_l"], FREE] = "reverse_kl"
    """Figure of the validation prompts that decides: the lowest divergence, or the highest accuracy (of generated tasks) or
    ROUGE-L (of prompts with gold answers)."""
    validation: SourceConfig
    """Held-out prompts, none of which is a test prompt. Answers to them are as long, and sampled with as many seeds, as those
    to evaluation.test."""
    seeds: Annotated[list[NonNegativeInt] | None, FREE] = Field(default=None, min_length=1)
    """Values of run.seed with which every value is tried; figures are means over them. None: the first of `seeds`. The cell's
    run with a seed that has chosen its value is a little favoured: its noise took part in the choice."""

    @field_validator("values")
    @classmethod
    def _ascend(cls, values: list[int | float]) -> list[int | float]:
        if sorted(set(values)) != values:
            raise ValueError(f"choose.values are {values}; list each value once, from the smallest to the largest")
        return values

    @model_validator(mode="after")
    def _figure_exists(self) -> "ChooseConfig":
        graded, gold = self.validation.task is not None, self.validation.gold or self.validation.references is not None
        if self.by == "accuracy" and not graded:
            raise ValueError("choose.by is accuracy, which only generated tasks (task:NAME) have; set choose.by=reverse_kl")
        if self.by == "rouge_l" and (graded or not gold):
            raise ValueError(
                "choose.by is rouge_l, which needs gold answers in text; set choose.validation.answer, or choose.by=reverse_kl"
            )
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"choose.seeds are {self.seeds}: a repeated seed repeats the run; list each seed once")
        return self

    def label(self, value: float) -> str:
        """The setting with a value, as part of a path.

        >>> ChooseConfig(values=[0.001, 0.01], validation={"path": "task:sort", "split": "valid"}).label(0.001)
        'lr0.001'
        """
        return f"{self.key.rpartition('.')[2]}{value}"

    def check_apart(self, test: SourceConfig, where: str) -> None:
        """Raise ValueError where the validation prompts and the test prompts are rows of one source, the same rows or
        overlapping ones."""
        source = self.validation
        if (source.path, source.subset, source.split) != (test.path, test.subset, test.split):
            return
        of_task = source.task is not None
        if of_task and source.seed != test.seed:
            raise ValueError(
                f"choose.validation and {where} are both of split {test.split} of {test.path} and may share prompts; "
                "set choose.validation.split=valid"
            )
        ends = [each.skip + each.rows if each.rows else None for each in (source, test)]
        if of_task:
            ends = [end or each.skip + 1000 for end, each in zip(ends, (source, test), strict=True)]
        before = any(end is not None and end <= other.skip for end, other in zip(ends, (test, source), strict=True))
        if not before:
            remedy = "choose another split or file, or divide the file with rows and skip"
            raise ValueError(f"choose.validation and {where} are rows of {test.path} that overlap; {remedy}")
