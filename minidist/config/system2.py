"""`program`: how an answer is found in several calls, and which answers are kept."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from minidist.config.base import Section

ProgramName = Literal[
    "direct",
    "chain_of_thought",
    "rephrase_and_respond",
    "rephrase_then_respond",
    "system_2_attention",
    "branch_solve_merge",
]
AnswerForm = Literal["exact", "text", "number", "yes_no", "option"]


class FilterConfig(Section):
    """Which rows are kept, by the agreement of their answers; no gold answer is used."""

    type: Literal["majority", "universal", "none"] = "majority"
    """majority: the answer that most samples give; a tie has no winner, and the row is dropped. universal: the model reads all
    samples and names the one that agrees best with the others, for answers in free text. none: the first sample."""
    threshold: float = Field(default=0.0, ge=0, le=1)
    """Least share of a row's answers, over samples and changed inputs, that must have the form of the winner."""
    perturbations: list[Literal["shuffled_options", "swapped_responses", "paraphrased"]] = Field(default=[])
    """Changes of the input that leave the right answer as it is. The program runs on each too, and the row is kept only if all
    their answers, mapped back, equal the winner."""

    @model_validator(mode="after")
    def _counts_votes(self) -> "FilterConfig":
        if self.type == "universal" and (self.threshold or self.perturbations):
            raise ValueError(
                "filter.type=universal has the model choose and counts no votes; leave threshold and perturbations out, or set "
                "type: majority"
            )
        return self


class ProgramConfig(Section):
    """A program of several calls of the model for each row."""

    type: ProgramName = "chain_of_thought"
    """The program; minidist/system2/README.md describes each."""
    templates: Path | None = None
    """Folder of prompts, files NAME.jinja, that replace the packaged ones of minidist/system2/templates. None: those."""
    form: AnswerForm = "text"
    """How answers are compared, with each other and with the gold answer. exact: as they are, without white space around. text:
    without case, articles and punctuation at the ends. number: the last number. yes_no, option: the word, the letter."""
    gold: str | None = None
    """Column of the gold answer, for the accuracy of what is kept. None: no accuracy."""
    filter: FilterConfig = FilterConfig()
