"""`student`: which model learns, in which precision, with which tokenizer."""

from typing import Any, Literal

from pydantic import Field, model_validator

from minidist.config.base import Section

DType = Literal["float32", "bfloat16", "float16"]


class ModelConfig(Section):
    """A causal language model in Hugging Face format."""

    model: str | None = None
    """A directory, or a name on the Hugging Face hub."""
    dtype: DType = "float32"
    """Precision of the weights as they are held and computed with."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., arXiv:2106.09685) in place of full weights, through PEFT; no dropout."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    """The adapters' product is scaled by alpha / rank."""
    targets: list[str] = Field(default=["all-linear"], min_length=1)
    """Names of the linear layers that get adapters (q_proj, v_proj ...); all-linear: every one but the output head."""
    save: Literal["merged", "adapter"] = "merged"
    """What final/ and the checkpoints hold: the whole model with the adapters added in, or the adapters alone."""


class StudentConfig(ModelConfig):
    """The model that learns: from a checkpoint (`model`), or from scratch (`architecture`)."""

    architecture: dict[str, Any] | None = None
    """Fields of a transformers configuration, `model_type` among them (llama, qwen2, qwen3, gpt2 ...); the
    vocabulary size comes from the tokenizer. Weights start random, from `run.seed`."""
    tokenizer: str | None = None
    """A directory or hub name; `characters:TASK` makes a one-character tokenizer for a generated task. None takes
    the checkpoint's own."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights."""

    @model_validator(mode="after")
    def _one_origin(self) -> "StudentConfig":
        if (self.model is None) == (self.architecture is None):
            raise ValueError("set exactly one of student.model (a checkpoint) and student.architecture (from scratch)")
        if self.architecture is not None and self.tokenizer is None:
            raise ValueError("student.architecture needs student.tokenizer: a directory, a hub name, or characters:TASK")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("student.architecture needs model_type, such as llama, qwen3 or gpt2")
        if self.lora is not None and self.model is None:
            raise ValueError("student.lora adapts a trained model: set student.model")
        return self
