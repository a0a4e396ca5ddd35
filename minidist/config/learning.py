"""`learner`, `objective`, `rollout`: how the student learns, from what loss, and how it writes."""

from typing import Annotated, Literal

from pydantic import Field

from minidist.config.base import Section
from minidist.config.models import Payload


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) or plain SGD, with warm-up and decay."""

    type: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled; matrices only, never biases, norms or embeddings."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or down to zero at run.steps."""
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm; None: no clipping."""


class MeasureConfig(Section):
    """How a model's forward pass is cut into pieces; none of it changes a result."""

    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one forward pass; bounds activation memory."""
    layout: Literal["auto", "packed", "buckets"] = "auto"
    """How a flat micro-batch meets attention: one packed row whose sequences are kept apart, or rows of like length side
    by side. auto: buckets where attention has no variable-length kernel (CPU), packed elsewhere."""
    chunk_tokens: int = Field(default=1024, ge=1)
    """Loss tokens whose logits exist at one time."""


class LearnerConfig(MeasureConfig):
    """Where the gradient is formed."""

    backend: Literal["deepspeed", "single"] = "deepspeed"
    """DeepSpeed ZeRO, or plain torch in one process: the reference it must equal."""
    zero_stage: Literal[1, 2] = 2
    """What DeepSpeed partitions over the ranks: the optimizer (1), gradients too (2)."""
    optimizer: OptimizerConfig = OptimizerConfig()


class RolloutConfig(Section):
    """How the student writes."""

    engine: Literal["vllm", "hf"] = "vllm"
    """vLLM, or transformers: slow and exact, the reference."""
    prompts_per_step: int = Field(default=64, ge=1)
    samples_per_prompt: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy. Divergences use the untruncated distributions at objective.temperature all the same."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    kv_cache_gib: float = Field(default=0.25, gt=0)
    """Memory of vLLM's key-value cache on CPU, GiB."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """Share of a GPU's memory vLLM may take."""
    max_sequences: int = Field(default=256, ge=1)
    """Sequences decoded at one time."""


class ReverseKLConfig(Section):
    """Exact KL(student || teacher) over the full vocabulary at each token of the student's own text."""

    type: Literal["reverse_kl"] = "reverse_kl"
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits."""

    @property
    def needs(self) -> Payload:
        """The poorest payload that serves."""
        return "hidden"


class ForwardKLConfig(Section):
    """Exact KL(teacher || student) over the full vocabulary at each token of the student's own text."""

    type: Literal["forward_kl"] = "forward_kl"
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits."""

    @property
    def needs(self) -> Payload:
        """The poorest payload that serves."""
        return "hidden"


ObjectiveConfig = Annotated[ReverseKLConfig | ForwardKLConfig, Field(discriminator="type")]
