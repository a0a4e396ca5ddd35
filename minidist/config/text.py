"""`prefix`, `streams`: whose text the student learns from."""

from typing import Any, Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.data import SourceConfig
from minidist.config.objectives import ObjectiveConfig, SupervisedConfig


class ReplayConfig(Section):
    """DistiLLM's adaptive use of the student's own text (Ko et al., arXiv:2402.03898): a step is on gold answers, on answers
    the student writes, or on older ones out of a buffer."""

    capacity: int = Field(default=1000, ge=1)
    """Answers the buffer holds; the oldest leaves first."""
    growth: float = Field(default=0.1, ge=0, le=1)
    """What the student's share of the steps gains each time the validation loss has risen."""
    tolerance: float = Field(default=0.1, ge=0)
    """How far it must have risen above the loss at the last gain, nats a token."""
    schedule: Literal["decreasing", "constant", "increasing"] = "decreasing"
    """Part of the student's share that is written anew: from all to none over the run, half, or from none to all."""


class PrefixConfig(Section):
    """Whose text the objective is taken on: the share of a step's prompts that each writer answers.

    student alone is on-policy distillation, dataset alone offline distillation, teacher alone with a supervised objective
    sequence-level distillation (Kim & Rush, arXiv:1606.07947); student and dataset together mix as GKD does (Agarwal et al.,
    arXiv:2306.13649).
    """

    student: float = Field(default=1.0, ge=0, le=1)
    """The student's own samples."""
    teacher: float = Field(default=0.0, ge=0, le=1)
    """Samples of the teacher, at the sampling settings of `rollout`."""
    dataset: float = Field(default=0.0, ge=0, le=1)
    """Gold answers of data.prompts, cut at rollout.max_new_tokens."""
    per: Literal["row", "step"] = "row"
    """Each step has its share of every writer (row), or one coin a step says who writes all of it (step, as in GKD)."""
    replay: ReplayConfig | None = None
    """Let the student's share grow as its validation loss rises, and train on its answers more than once: `student` is the
    share it begins with, `dataset` the rest."""

    @model_validator(mode="after")
    def _shares(self) -> "PrefixConfig":
        total = self.student + self.teacher + self.dataset
        if abs(total - 1) > 1e-6:
            raise ValueError(f"prefix.student + prefix.teacher + prefix.dataset is {total:g}; the shares must add up to 1")
        if self.replay is not None and (self.teacher > 0 or self.per != "step"):
            raise ValueError(
                "prefix.replay decides between the student's text and gold answers, step by step; set prefix.teacher=0 and "
                "prefix.per=step"
            )
        return self

    @property
    def student_writes(self) -> bool:
        """Whether any of the text may be the student's."""
        return self.student > 0 or self.replay is not None

    @property
    def gold(self) -> bool:
        """Whether any of the text may be gold answers."""
        return self.dataset > 0 or self.replay is not None


class StreamConfig(Section):
    """Given text that is trained on beside the main stream, in the same optimizer step: SFT on answers, LM on plain text."""

    data: SourceConfig | None = None
    """Rows with answer (train on answers) or text (train on plain text)."""
    writer: Literal["teacher", "dataset"] | None = None
    """In place of data: answers to the step's own prompts, sampled by the teacher as `rollout` says, or the gold ones."""
    objective: ObjectiveConfig = SupervisedConfig()
    rows: int = Field(default=32, ge=1)
    """Rows of each step, of data; a writer answers all of the step's prompts."""
    weight: float = Field(default=1.0, ge=0)
    """Factor of this stream's mean loss per token in the step's loss; the main stream has 1."""
    max_tokens: int = Field(default=512, ge=2)
    """Longest sequence, prompt and answer together; plain text is cut into pieces of this length."""

    @model_validator(mode="before")
    @classmethod
    def _has_data(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.get("data") and not given.get("writer"):
            raise ValueError(
                "a stream beside the main one has no data to train on: give it data: {path: ..., answer or text: a template of "
                "its columns}, or writer: teacher or dataset for answers to the step's own prompts, or leave the stream out"
            )
        return given

    @model_validator(mode="after")
    def _has_labels(self) -> "StreamConfig":
        if self.data is None:
            return self
        if self.writer is not None:
            raise ValueError("a stream has data or a writer, not both: leave one of them out")
        if self.data.task is None and self.data.answer is None and self.data.text is None:
            raise ValueError("data of a stream needs answer (train on answers) or text (train on plain text)")
        return self
