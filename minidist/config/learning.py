"""`learner`, `prefix`, `rollout`, `streams`: how the student learns, from whose text, and how it writes."""

from typing import Any, Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.data import SourceConfig
from minidist.config.objectives import ObjectiveConfig, SupervisedConfig


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
    teacher_mix: float | None = Field(default=None, ge=0, le=1)
    """Teacher-mixed sampling (Gu et al., arXiv:2306.08543, equation 4): each token of the student's share is drawn from
    teacher_mix * p + (1 - teacher_mix) * q, p the teacher and q the student, temperature and top_p applied to each before.
    vLLM engines of both take turns at a sequence; engine hf decodes both in step. 0 is the student alone. None: 0.2 with
    objective minillm, else 0."""
    no_repeat_ngram_size: int | None = Field(default=None, ge=2)
    """evaluate only: a token that would write an n-gram of so many tokens for the second time, prompt included, gets no
    probability. It changes what text is measured (accuracy, ROUGE-L, length, diversity); divergences are of answers written
    without it. 6 is what the original MiniLLM's test script did unsaid. None: nothing is blocked."""
    kv_cache_gib: float = Field(default=0.25, gt=0)
    """Memory of vLLM's key-value cache on CPU, GiB."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """Share of a GPU's memory vLLM may take."""
    max_sequences: int = Field(default=256, ge=1)
    """Sequences decoded at one time."""


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
