"""`learner`: how the student learns."""

from typing import Literal

from pydantic import Field

from minidist.config.base import Section


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
    """After warm-up: constant, or down to zero at the end of the run."""
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm; None: no clipping."""


class MeasureConfig(Section):
    """How a model's forward pass is cut into pieces; none of it changes a result."""

    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one forward pass; bounds activation memory."""
    layout: Literal["auto", "packed", "buckets"] = "auto"
    """How a flat micro-batch meets attention: one packed row whose sequences are kept apart, or rows of like length side
    by side. auto: buckets where attention has no variable-length kernel (CPU), packed elsewhere."""
    chunk_tokens: int | None = Field(default=None, ge=1)
    """Loss tokens whose logits exist at one time. None: as many as make 2^25 logits, 128 MiB a table (220 tokens of 151,936
    classes)."""

    def chunk(self, vocabulary: int) -> int:
        """Loss tokens of a chunk."""
        return self.chunk_tokens or max(1, (1 << 25) // vocabulary)


class LearnerConfig(MeasureConfig):
    """Where the gradient is formed."""

    backend: Literal["deepspeed", "single"] = "deepspeed"
    """DeepSpeed ZeRO, or plain torch in one process: the reference it must equal."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed partitions over the ranks: nothing (0), the optimizer (1), gradients too (2), parameters too (3)."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory and step there (ZeRO 1 to 3)."""
    offload_parameters: bool = False
    """Keep partitioned parameters in host memory until a layer needs them (ZeRO 3)."""
    activation_checkpointing: bool = False
    """Keep only each layer's input and compute the layer again in the backward pass: less memory, about a third more time."""
    kernel: Literal["torch", "liger"] = "torch"
    """What forms a divergence and its gradient. liger: on a GPU, with liger-kernel installed, forward_kl, reverse_kl and jsd
    (also in kd, and in the single step of minillm) in one pass over the classes, equal to rounding; others as with torch."""
    optimizer: OptimizerConfig = OptimizerConfig()
