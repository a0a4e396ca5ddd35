"""`student`: the model that is trained, its precision and its tokenizer."""

from typing import Any, Literal

from pydantic import Field, model_validator

from minidist.config.base import Section

DType = Literal["float32", "bfloat16", "float16"]


class ModelConfig(Section):
    """A causal language model in Hugging Face format."""

    model: str
    """A directory, an fsspec address such as s3://bucket/model, or a name on the Hugging Face hub."""
    dtype: DType = "float32"
    """Precision of the weights in memory and in computation."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; only for code that you have read."""
    tokenizer: str | None = None
    """A directory or hub name of the tokenizer, where the model's directory has none or another one. None: the model's own."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., arXiv:2106.09685) through PEFT, in place of training all weights; no dropout."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=32, gt=0)
    """The product of the adapters is scaled by alpha / rank."""
    targets: list[str] = Field(default=["all-linear"], min_length=1)
    """Names of the linear layers with adapters (q_proj, v_proj ...). all-linear: all but the output head."""
    save: Literal["merged", "adapter"] = "merged"
    """Contents of final/ and the checkpoints. merged: the whole model with the adapters merged. adapter: the adapters only."""


class InitConfig(Section):
    """A student cut from a larger model."""

    layers: list[int] = Field(min_length=1)
    """Numbers of the layers that are kept, from 0, in rising order: of `student.model` or, where it is not set, of
    `teacher.model`. Embeddings and head are kept too."""


class StudentConfig(ModelConfig):
    """The trained model: from a checkpoint (`model`), from scratch (`architecture`), or cut from another (`init`)."""

    model: str | None = None
    """A directory, or a name on the Hugging Face hub. None: `architecture` describes the model."""
    architecture: dict[str, Any] | None = None
    """Fields of a transformers configuration, including `model_type` (llama, qwen2, qwen3, gpt2 ...); the vocabulary size comes
    from the tokenizer. The weights are initialised randomly from run.seed. None: `model` is a checkpoint."""
    tokenizer: str | None = None
    """A directory or hub name; `characters:TASK` makes a character tokenizer for a generated task. None: the model's own."""
    lora: LoraConfig | None = None
    """Train low-rank adapters. None: train all weights."""
    init: InitConfig | None = None
    """Start from some of the layers of a model. None: from all."""

    @model_validator(mode="after")
    def _one_origin(self) -> "StudentConfig":
        if self.init is not None and self.architecture is not None:
            raise ValueError("student.init cuts a trained model, and student.architecture describes a new one; set one of them")
        if self.init is None and (self.model is None) == (self.architecture is None):
            raise ValueError("set exactly one of student.model (a checkpoint) and student.architecture (from scratch)")
        if self.architecture is not None and self.tokenizer is None:
            raise ValueError("student.architecture needs student.tokenizer: a directory, a hub name, or characters:TASK")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("student.architecture needs model_type, such as llama, qwen3 or gpt2")
        if self.lora is not None and self.architecture is not None:
            raise ValueError("student.lora adapts a trained model: set student.model")
        return self
