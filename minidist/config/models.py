"""`student` and `teacher`: which models, in which precision, with which tokenizer."""

from typing import Any, Literal

from pydantic import Field, model_validator

from minidist.config.base import Section

DType = Literal["float32", "bfloat16", "float16"]
Payload = Literal["sampled", "top_k", "hidden"]


class ModelConfig(Section):
    """A causal language model in Hugging Face format."""

    model: str | None = None
    """A directory, or a name on the Hugging Face hub."""
    dtype: DType = "float32"
    """Precision of the weights as they are held and computed with."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""


class StudentConfig(ModelConfig):
    """The model that learns: from a checkpoint (`model`), or from scratch (`architecture`)."""

    architecture: dict[str, Any] | None = None
    """Fields of a transformers configuration, `model_type` among them (llama, qwen2, qwen3, gpt2 ...); the
    vocabulary size comes from the tokenizer. Weights start random, from `run.seed`."""
    tokenizer: str | None = None
    """A directory or hub name; `characters:TASK` makes a one-character tokenizer for a generated task. None takes
    the checkpoint's own."""

    @model_validator(mode="after")
    def _one_origin(self) -> "StudentConfig":
        if (self.model is None) == (self.architecture is None):
            raise ValueError("set exactly one of student.model (a checkpoint) and student.architecture (from scratch)")
        if self.architecture is not None and self.tokenizer is None:
            raise ValueError("student.architecture needs student.tokenizer: a directory, a hub name, or characters:TASK")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("student.architecture needs model_type, such as llama, qwen3 or gpt2")
        return self


class TeacherConfig(ModelConfig):
    """The frozen model that scores."""

    payload: Payload = "hidden"
    """What it says of each token: `sampled` (one log-probability), `top_k` (K of them and the tail), `hidden` (hidden
    states, from which the learner forms the exact full vocabulary)."""
    top_k: int = Field(default=64, ge=1)
    """K of the `top_k` payload, in classes."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens per forward pass; bounds its memory."""

    @model_validator(mode="after")
    def _named(self) -> "TeacherConfig":
        if self.model is None:
            raise ValueError("teacher.model is missing: a directory, or a name on the Hugging Face hub")
        return self
