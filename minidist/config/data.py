"""`data`: sources of prompts, answers and plain text, and how they become tokens."""

from typing import Any, Literal

from pydantic import Field, model_validator

from minidist.config.base import Section


class SourceConfig(Section):
    """A set of rows: a local file (.jsonl, .json, .csv, .tsv, .parquet, .txt, also compressed), a directory, a data set on the
    hub, or a generated task. Values keep the text that they have in the file."""

    path: str
    """A data set name on the hub, a file, a directory of files, an fsspec address of either, or `task:NAME` for a
    generated task. Environment variables are expanded: ${MINIDIST_DATA}/dolly/train.jsonl.gz."""
    split: str = "train"
    """Split of a data set or of a directory; of a task: train, valid or test, which have no prompt in common."""
    subset: str | None = None
    """Configuration of a data set on the hub, or folder of a directory. None: the only one."""
    prompt: str = "{{ prompt }}"
    """Jinja template of the prompt, over the columns of a row. `{{ COLUMN }}` of a column of messages is a conversation."""
    answer: str | None = None
    """Jinja template of the gold answer, or `{{ COLUMN }}` of a column of messages. None: the rows are prompts only."""
    messages: str | None = None
    """Column with a conversation: a list of messages with role and content, as Hugging Face chat data sets have it, in place of
    prompt and answer. A rollout answers its last message; a trailing turn of the assistant is the gold answer."""
    tools: str | None = None
    """Column with the tools that the chat template describes to the model, a list of JSON schemas."""
    labels: Literal["assistant", "last"] = "assistant"
    """Turns of a conversation that are trained on: all of the assistant's, or the last. Turns of users, tools and the system
    never are."""
    references: str | None = None
    """Column with a list of gold answers for evaluation, in place of answer; an answer is measured against the closest."""
    text: str | None = None
    """Jinja template of plain text, to train on all its tokens instead of on answers."""
    rows: int | None = Field(default=None, ge=1)
    """Number of usable rows, from the first or, with skip, from the first after those. None: all; of a task, 1,000."""
    skip: int = Field(default=0, ge=0)
    """Usable rows that are left out from the beginning, so that two sources can divide a file: rows: 100 and skip: 100."""
    seed: int = 0
    """Seed of a generated task. The order of the rows follows run.seed."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """Rows that are empty or longer than the model's context: stop the run (refuse), or leave them out and count them
    (skip)."""

    @model_validator(mode="after")
    def _one_use(self) -> "SourceConfig":
        if self.text is not None and self.answer is not None:
            raise ValueError("set answer (train on answers) or text (train on plain text) of a data source, not both")
        if self.messages is not None and (self.answer is not None or self.text is not None):
            raise ValueError("messages of a data source is used in place of answer and of text; set only one of the three")
        if self.references is not None and (self.answer is not None or self.text is not None):
            raise ValueError("references of a data source is used in place of answer and of text; set only one of the three")
        return self

    @property
    def used_elsewhere(self) -> str | None:
        """The first field set by which other stages than those of labelled tasks make texts of a row; None: none is."""
        fields = ("prompt", "answer", "messages", "tools", "labels", "references", "text")
        default = {key: type(self).model_fields[key].default for key in fields}
        return next((key for key in fields if getattr(self, key) != default[key]), None)

    @property
    def gold(self) -> bool:
        """Whether the rows have gold answers."""
        return self.answer is not None or self.messages is not None or self.task is not None

    @property
    def has_labels(self) -> bool:
        """Whether the rows can be trained on: answers after prompts, or plain text."""
        return self.gold or self.text is not None

    @property
    def task(self) -> str | None:
        """Name of the generated task; None for other sources."""
        return self.path.removeprefix("task:") if self.path.startswith("task:") else None


class QuestionsConfig(SourceConfig):
    """Questions with a fixed set of choices, for accuracy and calibration.

    `answer` gives the text of the right choice or, if no choice has that text, its number from 0.
    """

    choices: list[str] | str
    """The choices as they follow the prompt, including a leading blank: a list for all rows, or the name of a column that holds
    a list for each row."""

    @model_validator(mode="after")
    def _one_is_right(self) -> "QuestionsConfig":
        if not self.gold:
            raise ValueError("questions need answer: the template of the right choice, its text or its number from 0")
        if isinstance(self.choices, list) and len(self.choices) < 2:
            raise ValueError(f"choices of questions are {self.choices}; give two or more")
        return self


class RenderConfig(Section):
    """How text becomes tokens, for all sources of the run."""

    chat_template: Literal["auto", "on", "off"] = "auto"
    """Wrap prompts in the tokenizer's chat template: if it has one (auto), always (on), or never (off)."""
    template_from: str = "student"
    """Whose chat template it is: that of the student, of the teacher, of a tokenizer in a directory, or in a Jinja file. The
    trained student is saved with it. evaluate takes the first of its models for the student."""
    template_options: dict[str, Any] = Field(default={})
    """Variables of the chat template, such as enable_thinking: false."""
    system: str | None = None
    """System message of conversations that have none. None: no system message."""
    special_tokens: Literal["control", "text", "refuse"] = "control"
    """Special tokens that a row writes out, such as <|im_end|>: read as the tokenizer reads them (control), kept as plain text
    (text), or the row is a bad row (refuse). `minidist check` counts them."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """Most tokens of a prompt; rows with longer prompts are bad rows."""
    truncate: Literal["refuse", "left", "right"] = "refuse"
    """Rows that are too long are bad rows (refuse), or the text of the prompt loses its beginning (left) or its end (right).
    An answer that is too long beside its prompt loses its end with right, and then has no end token; with left the prompt
    loses more."""


class MixConfig(SourceConfig):
    """Rows that are trained on beside those of `train`, so that what they teach is not forgotten."""

    share: float = Field(gt=0, lt=1)
    """Share of the rows of all optimizer steps, each with its answer (or plain text) as its labels; `train` has the rest. The
    loss is the mean over the labels of all rows, so long answers weigh more than their share of the rows."""


class SftDataConfig(RenderConfig):
    """Training rows and validation rows of supervised fine-tuning."""

    train: SourceConfig
    """Rows to train on."""
    mix: dict[str, MixConfig] = Field(default={})
    """Further rows to train on, by a name, each with templates of its own and a fixed share of the rows; such as ordinary
    instructions beside the answers of a program, whose brevity would spread to all answers."""
    validation: SourceConfig | None = None
    """Rows for the validation loss. None: no validation."""
    max_tokens: int = Field(default=512, ge=2)
    """Longest sequence, prompt and answer together; plain text is cut into pieces of this length."""


class DistillDataConfig(RenderConfig):
    """Prompts of the training text and of the evaluations."""

    prompts: SourceConfig
    """Prompts to train on, with gold answers where prefix or a stream uses them."""
    validation: SourceConfig | None = None
    """Held-out prompts for evaluations. None: no evaluations."""


class EvaluateDataConfig(RenderConfig):
    """Held-out prompts and questions."""

    test: SourceConfig
    """Held-out prompts, with gold answers for accuracy or ROUGE-L."""
    questions: dict[str, QuestionsConfig] = Field(default={})
    """Sets of questions, by the name of their figures."""


class ScoreSourceConfig(SourceConfig):
    """Rows to score, answers after their prompts or plain text, cut exactly as the run that reads the scores cuts them."""

    max_tokens: int = Field(default=512, ge=2)
    """Longest sequence, prompt and answer together, as of streams.NAME.max_tokens; plain text is cut into pieces of this
    length."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Set for rows that the run uses through prefix.dataset: answers are cut here, at the run's rollout.max_new_tokens, and
    only data.max_prompt_tokens bounds their prompts. None: the rows are those of a stream, with whole answers."""

    @model_validator(mode="after")
    def _has_labels(self) -> "ScoreSourceConfig":
        if not self.has_labels:
            raise ValueError("a source to score needs answer or text: the template of the text that the teacher scores")
        if self.max_new_tokens is not None and self.text is not None:
            raise ValueError("max_new_tokens of a source cuts answers; plain text is cut by max_tokens")
        return self


class ScoreDataConfig(RenderConfig):
    """Text to score, rendered exactly as the run that reads the scores renders it."""

    sources: dict[str, ScoreSourceConfig] = Field(min_length=1)
    """Sources of rows, by a name for the log."""
