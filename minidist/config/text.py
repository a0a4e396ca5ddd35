"""`prefix`, `streams`: the text on which the student is trained."""

from typing import Any, Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.data import SourceConfig
from minidist.config.objectives import ObjectiveConfig, SupervisedConfig


class ReplayConfig(Section):
    """Adaptive replay of DistiLLM (Ko et al., arXiv:2402.03898): each step is trained on gold answers, on new answers of the
    student, or on earlier answers from a buffer."""

    capacity: int = Field(default=1000, ge=1)
    """Answers that the buffer holds; the oldest are removed first."""
    growth: float = Field(default=0.1, ge=0, le=1)
    """Increase of the student's share of the steps each time the validation loss has risen."""
    tolerance: float = Field(default=0.1, ge=0)
    """Least rise of the validation loss above its value at the last increase, nats a token."""
    schedule: Literal["decreasing", "constant", "increasing"] = "decreasing"
    """Part of the student's share that is newly written instead of replayed: from all to none over the run (decreasing), half
    (constant), or from none to all (increasing)."""


class PrefixConfig(Section):
    """Text of the main stream: the share of a step's prompts that each writer answers.

    Student only is on-policy distillation, dataset only is offline distillation, and teacher only with a supervised objective
    is sequence-level distillation (Kim & Rush, arXiv:1606.07947). Student and dataset together mix as GKD does (Agarwal et al.,
    arXiv:2306.13649)."""

    student: float = Field(default=1.0, ge=0, le=1)
    """Share of the student's own samples."""
    teacher: float = Field(default=0.0, ge=0, le=1)
    """Share of the teacher's samples, with the sampling settings of `rollout`."""
    dataset: float = Field(default=0.0, ge=0, le=1)
    """Share of gold answers of data.prompts, cut at rollout.max_new_tokens."""
    per: Literal["row", "step"] = "row"
    """row: each step has the share of every writer. step: one random draw a step picks the writer of all its answers (GKD)."""
    replay: ReplayConfig | None = None
    """Let the student's share grow when the validation loss rises, and train on its answers more than once; `student` is the
    initial share, `dataset` the rest. None: fixed shares, no replay."""

    @model_validator(mode="after")
    def _shares(self) -> "PrefixConfig":
        total = self.student + self.teacher + self.dataset
        if abs(total - 1) > 1e-6:
            raise ValueError(f"prefix.student + prefix.teacher + prefix.dataset is {total:g}; the shares must add up to 1")
        if self.replay is not None and (self.teacher > 0 or self.per != "step"):
            chooses = "prefix.replay chooses between the student's text and gold answers at each step"
            raise ValueError(f"{chooses}; set prefix.teacher=0 and prefix.per=step")
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
    """Text beside the main stream, in the same optimizer steps: SFT on answers, LM on plain text."""

    data: SourceConfig | None = None
    """Rows with answer (train on answers) or text (train on plain text). None: `writer` gives the text."""
    writer: Literal["teacher", "dataset"] | None = None
    """In place of data: answers to the prompts of the step, sampled from the teacher with the settings of `rollout`, or the
    gold answers. None: `data` gives the text."""
    objective: ObjectiveConfig = SupervisedConfig()
    """Loss of the stream."""
    rows: int = Field(default=32, ge=1)
    """Rows of data in each step; a writer answers all prompts of the step."""
    weight: float = Field(default=1.0, ge=0)
    """Factor of the stream's mean loss per token in the loss of the step; the main stream has 1."""
    max_tokens: int = Field(default=512, ge=2)
    """Longest sequence, prompt and answer together; plain text is cut into pieces of this length."""

    @model_validator(mode="before")
    @classmethod
    def _has_data(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and not tree.get("data") and not tree.get("writer"):
            raise ValueError(
                "a stream has no data to train on: set data: {path: ..., answer or text: a template of its columns}, or "
                "writer: teacher or dataset for answers to the prompts of the step, or leave the stream out"
            )
        return tree

    @model_validator(mode="after")
    def _has_labels(self) -> "StreamConfig":
        if self.data is None:
            return self
        if self.writer is not None:
            raise ValueError("a stream has data or a writer, not both: leave one of them out")
        if not self.data.has_labels:
            raise ValueError("data of a stream needs answer (train on answers) or text (train on plain text)")
        return self
