"""`data`: where prompts, answers and plain text come from."""

from typing import Literal

from pydantic import Field, model_validator

from minidist.config.base import Section


class SourceConfig(Section):
    """One set of rows: a Hugging Face data set, a local JSONL or Parquet file (.gz too), a directory, or a task."""

    path: str
    """A data set name on the hub, a file, a directory of files, or `task:NAME` for a generated task. Environment
    variables are filled in: ${MINIDIST_DATA}/dolly/train.jsonl.gz."""
    split: str = "train"
    """Split of a hub data set; of a task: train, valid or test, which share no prompt."""
    prompt: str = "{{ prompt }}"
    """Jinja template of the prompt over the row's columns."""
    answer: str | None = None
    """Jinja template of the gold answer; None: the rows are prompts only."""
    references: str | None = None
    """Column that lists several gold answers to measure by, in place of answer: what is written counts by the nearest one."""
    text: str | None = None
    """Jinja template of plain text, for training on all its tokens instead of on answers."""
    rows: int | None = Field(default=None, ge=1)
    """Use the first so many usable rows; None: all. A task makes as many (1,000 when None)."""
    seed: int = 0
    """Seed of a generated task. The order in which rows are drawn follows run.seed."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What to do with rows that are empty or longer than the model's context: stop, or leave out and count."""

    @model_validator(mode="after")
    def _one_use(self) -> "SourceConfig":
        if self.text is not None and self.answer is not None:
            raise ValueError("set answer (train on answers) or text (train on plain text) of a data source, not both")
        if self.references is not None and (self.answer is not None or self.text is not None):
            raise ValueError("references of a data source stands in place of answer and of text; set one of them")
        return self

    @property
    def task(self) -> str | None:
        """Name of the generated task, or None."""
        return self.path.removeprefix("task:") if self.path.startswith("task:") else None


class QuestionsConfig(SourceConfig):
    """Questions with a fixed set of answers, for accuracy and calibration.

    `answer` gives the right one's text or, where it is none of the texts, its number from 0.
    """

    choices: list[str] | str
    """The texts to choose from, as they follow the prompt (a blank that begins them is part of them): a list that serves every
    row, or the name of a column that holds a row's own."""

    @model_validator(mode="after")
    def _one_is_right(self) -> "QuestionsConfig":
        if self.answer is None and self.task is None:
            raise ValueError("questions need answer: the template of the right choice, its text or its number from 0")
        if isinstance(self.choices, list) and len(self.choices) < 2:
            raise ValueError(f"choices of questions are {self.choices}; give two or more")
        return self


class RenderConfig(Section):
    """How text becomes tokens; the same for every source of the run."""

    chat_template: Literal["auto", "on", "off"] = "auto"
    """Wrap prompts in the tokenizer's chat template: when it has one (auto), always, or never."""
    system: str | None = None
    """System message of the chat template."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longer prompts are bad rows."""


class SftDataConfig(RenderConfig):
    """Rows to learn from, and rows to watch the validation loss on."""

    train: SourceConfig
    validation: SourceConfig | None = None
    max_tokens: int = Field(default=512, ge=2)
    """Longest sequence, prompt and answer together; plain text is cut into pieces of this length."""


class DistillDataConfig(RenderConfig):
    """Prompts the student writes on, and prompts to evaluate on."""

    prompts: SourceConfig
    validation: SourceConfig | None = None


class EvaluateDataConfig(RenderConfig):
    """Held-out prompts, with gold answers where accuracy or ROUGE-L is wanted."""

    test: SourceConfig
    questions: dict[str, QuestionsConfig] = Field(default={})
    """Questions with a fixed set of answers, by the name their figures get."""


class ScoreSourceConfig(SourceConfig):
    """Rows to score: answers after their prompts, or plain text; cut as the run that reads the scores cuts them."""

    max_tokens: int = Field(default=512, ge=2)
    """As of a stream beside the main one: the longest sequence, prompt and answer together; plain text is cut into pieces of
    this length."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """As of prefix.dataset: answers are cut here, at the run's rollout.max_new_tokens, and data.max_prompt_tokens alone bounds
    their prompts. None: the rows are a stream's, with whole answers."""

    @model_validator(mode="after")
    def _has_labels(self) -> "ScoreSourceConfig":
        if self.task is None and self.answer is None and self.text is None:
            raise ValueError("a source to score needs answer or text: the template of what the teacher is asked about")
        if self.max_new_tokens is not None and self.text is not None:
            raise ValueError("max_new_tokens of a source cuts answers; plain text is cut by max_tokens")
        return self


class ScoreDataConfig(RenderConfig):
    """Given text to score; rendered as the run that reads the scores renders it."""

    sources: dict[str, ScoreSourceConfig] = Field(min_length=1)
    """Rows, by a name for the log."""
