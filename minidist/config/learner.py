"""`learner`: the optimizer, and how its work is divided over devices and chunks."""

from typing import Annotated, Literal

from pydantic import Field

from minidist.config.base import FREE, Section

Rate = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) or plain SGD, with warm-up and decay."""

    type: Literal["adamw", "sgd"] = "adamw"
    """The optimizer."""
    lr: float = Field(default=1e-5, gt=0, le=1e4)
    """Peak learning rate."""
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moments."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's constant in the denominator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, of matrices only: not of biases, norms and embeddings."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or falling to zero at the end of the run."""
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm. None: no clipping."""


class MeasureConfig(Section):
    """How the forward pass of a model is divided; changes results by rounding only."""

    micro_batch_tokens: Annotated[int, FREE] = Field(default=4096, ge=1)
    """Most tokens of one forward pass; bounds activation memory."""
    layout: Annotated[Literal["auto", "packed", "buckets"], FREE] = "auto"
    """Layout of a micro-batch. packed: one row of all sequences, with attention within each sequence only, and no padding; on a
    CPU a prompt of several samples is computed once. buckets: rows of similar length side by side, with at most 5 % of padding.
    auto: packed for the families that a test proves (configs/FAMILIES.md), where the loaded model computes packed rows right
    and the device has a kernel for them (a CPU, or a GPU with flash-attn and weights of 16 bits); else buckets."""
    chunk_tokens: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Loss tokens whose logits exist at one time. None: 2^25 logits, 128 MiB a table (220 tokens with a vocabulary of
    151,936)."""

    def chunk(self, vocabulary: int) -> int:
        """Loss tokens of a chunk, for a vocabulary size."""
        return self.chunk_tokens or max(1, (1 << 25) // vocabulary)


class LearnerConfig(MeasureConfig):
    """The learner: backend, partitioning and optimizer."""

    backend: Annotated[Literal["deepspeed", "single"], FREE] = "deepspeed"
    """deepspeed: DeepSpeed ZeRO. single: plain torch in one process, the reference for deepspeed."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], FREE] = 2
    """What DeepSpeed partitions over the ranks: nothing (0), optimizer states (1), also gradients (2), also parameters (3). In
    stage 3 each rank reads and writes its own part of the model alone. Any number of ranks resumes a run."""
    offload_optimizer: Annotated[bool, FREE] = False
    """Keep optimizer states in host memory and update the weights on the CPU (ZeRO 1 to 3)."""
    offload_parameters: Annotated[bool, FREE] = False
    """Keep partitioned parameters in host memory until a layer needs them (ZeRO 3 only)."""
    parameter_group: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Ranks that hold all weights between them a second time, so that the backward pass gathers them from these alone (ZeRO 3
    only; hpZ of Wang et al., arXiv:2306.10209): those of one node, where nodes have a slow network. None: the ranks hold
    the weights once."""
    activation_checkpointing: Annotated[bool, FREE] = False
    """Keep only the input of each layer and recompute the layer in the backward pass: less memory, about a third more time."""
    compute_dtype: Literal["bfloat16"] | None = None
    """Precision of the products of matrices in the student's forward and backward pass, where it differs from student.dtype;
    weights, gradients and optimizer states keep student.dtype. bfloat16 is faster where the machine has such arithmetic
    (minidist check warns where it has not). None: student.dtype."""
    kernel: Annotated[Literal["torch", "liger"], FREE] = "torch"
    """How divergences and their gradients are computed. liger: on a GPU, with liger-kernel installed, forward_kl, reverse_kl
    and jsd (also in kd, and in the single step of minillm) by one kernel in one pass over the classes, equal up to rounding;
    other divergences as with torch."""
    optimizer: OptimizerConfig = OptimizerConfig()

    @property
    def partitions_weights(self) -> bool:
        """Whether no rank holds whole parameters."""
        return self.backend == "deepspeed" and self.zero_stage == 3
