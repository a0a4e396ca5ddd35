"""How much memory each role needs on each of its devices, from shapes alone: formulas, no measurement, no weights.

What is counted are the tensors that last or that grow with a setting; a few per cent of fragments and workspace are not.
tests/benchmarks/memory.py compares the learner's estimate with what a process really takes.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from minidist.config.learner import LearnerConfig
from minidist.config.models import LoraConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import LocalTeacherConfig, TeacherConfig
from minidist.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# DeepSpeed's defaults: elements of its reduction bucket, and of parameters that ZeRO-3 keeps gathered at one time.
_BUCKET, _GATHERED = 500_000_000, 1_000_000_000
# Tables of float32 [chunk, vocabulary] that exist at one time in the loss's backward pass, with the teacher's or without.
_TABLES_WITH_TEACHER, _TABLES = 6, 4
# Share of the activations that glibc's allocator holds on to between one micro-batch and the next, on a CPU: measured 0.5 to 1.
# With MALLOC_MMAP_THRESHOLD_=1048576 it holds nothing, and a small model's update takes a quarter longer.
_HELD = 0.8
# Tokens of one forward pass of vLLM.
_ENGINE_TOKENS = 8192
# Libraries, allocator and, on a GPU, the CUDA context of each process.
_PROCESS = GIB // 2


@dataclass(frozen=True)
class Shape:
    """A decoder as the formulas see it; sizes in elements."""

    parameters: int
    trainable: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    gated: bool = True
    """Whether its feed-forward layers have three matrices (SwiGLU) rather than two."""
    head_norms: bool = False
    """Whether queries and keys are normalised (Qwen3)."""


@dataclass(frozen=True)
class Need:
    """What each device of a role holds, in bytes, by purpose; `host` is what each process keeps in host memory besides."""

    role: str
    devices: int
    parts: dict[str, int] = field(default_factory=dict)
    host: int = 0
    allowance: float = 1.0
    """Share of a device's memory that the role may take."""
    least_cache: int = 0
    """Bytes of one longest sequence's keys and values: an engine with less does not start."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def least(self) -> int:
        """What it cannot do without: `total`, with the least cache."""
        return self.total - self.parts.get("cache", 0) + self.least_cache


def read_shape(config: "PretrainedConfig", lora: LoraConfig | None = None) -> Shape:
    """The shape of a model's configuration. With `lora` only the adapters are trainable: rank * (in + out) of each layer."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):  # as from_pretrained builds every model
            skeleton = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ModelError(f"{config.model_type} is no causal language model: {str(error).splitlines()[0][:200]}") from None
    skeleton.tie_weights()
    text = config.get_text_config()
    heads, count = int(text.num_attention_heads), sum(parameter.numel() for parameter in skeleton.parameters())
    adapters = 0 if lora is None else lora.rank * _adapted(skeleton, lora)
    return Shape(
        parameters=count + adapters,
        trainable=adapters or count,
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        vocabulary=int(text.vocab_size),
        gated=any("gate" in name for name, _ in skeleton.named_modules()),
        head_norms=any(name.endswith("q_norm") for name, _ in skeleton.named_modules()),
    )


def _adapted(skeleton: "PreTrainedModel", lora: LoraConfig) -> int:
    """Inputs and outputs of all layers that get adapters: the rows of A and the columns of B at rank 1."""
    head, found = skeleton.get_output_embeddings(), 0
    for name, module in skeleton.named_modules():
        linear = type(module).__name__ in ("Linear", "Conv1D") and module is not head
        if linear and ("all-linear" in lora.targets or name.rpartition(".")[2] in lora.targets):
            found += sum(module.get_parameter("weight").shape)
    return found


def learner_need(
    shape: Shape,
    config: LearnerConfig,
    *,
    dtype: str,
    ranks: int,
    tokens: int,
    gpu: bool,
    teacher_head: int | None = None,
) -> Need:
    """One rank of the learner. `tokens`: of a micro-batch. `teacher_head`: bytes of the head it applies to hidden states.

    With b bytes a parameter, P parameters of which T are trained, N ranks, Adam:
      weights P b, gradients T b and a float32 copy T 4 for the step, optimizer T (4 + 8): float32 master copy, two moments.
      ZeRO 1 divides the optimizer by N, ZeRO 2 the gradients too, ZeRO 3 the weights too (Rajbhandari et al.,
      arXiv:1910.02054, section 5; there b = 2 and the 12 bytes are K). No master copy for float32 weights that are not copied:
      plain torch, and ZeRO 0 and 3. Plain torch keeps moments in the weights' own precision.
      buffers: DeepSpeed's reduction bucket (5e8 elements); under ZeRO 3 gathered parameters (at most 1e9 elements); the
      teacher's head; what the process itself takes.
    """
    size, whole = BYTES[dtype], config.backend == "single"
    stage = 0 if whole else config.zero_stage
    share = {name: ranks if stage >= least else 1 for name, least in (("optimizer", 1), ("gradients", 2), ("weights", 3))}
    moments = 0 if config.optimizer.type == "sgd" else 2 * (size if whole else 4)
    copied = not whole and (size < 4 or stage in (1, 2))
    weights = shape.parameters * size // share["weights"]
    stepped = 4 * (min(shape.trainable // ranks, _GATHERED) if stage == 3 else shape.trainable // ranks) if stage else 0
    optimizer = shape.trainable * (moments + 4 * copied) // share["optimizer"]
    bucket = (_BUCKET if gpu else min(_BUCKET, shape.trainable)) * size if stage else 0
    gathered = min(shape.parameters, _GATHERED) * size if stage == 3 and ranks > 1 else 0
    tables = _TABLES if teacher_head is None else _TABLES_WITH_TEACHER
    kept = activations(shape, tokens, size, checkpointing=config.activation_checkpointing)
    held = 0 if gpu else int(_HELD * kept)
    off, away = gpu and config.offload_optimizer, gpu and config.offload_parameters
    parts = {
        "weights": 0 if away else weights,
        "gradients": shape.trainable * size // share["gradients"] + (0 if off else stepped),
        "optimizer": 0 if off else optimizer,
        "activations": kept,
        "logits": min(config.chunk(shape.vocabulary), tokens) * shape.vocabulary * 4 * tables,
        "buffers": bucket + gathered + (teacher_head or 0) + held + _PROCESS,
    }
    return Need("learner", ranks, parts, host=(optimizer + stepped if off else 0) + (weights if away else 0))


def with_tutor(need: Need, shape: Shape, config: LearnerConfig, *, dtype: str, tokens: int, gpu: bool) -> Need:
    """`need` of a learner's rank that also holds a whole teacher, frozen but for its prompt, and goes back through it.

    The head that the learner applies to hidden states is the teacher's own, not a second one; and both models' activations
    of a micro-batch are never there at the same time.
    """
    size, head = BYTES[dtype], shape.vocabulary * shape.hidden * BYTES[dtype]
    kept = activations(shape, tokens, size, checkpointing=config.activation_checkpointing)
    more = max(0, kept - need.parts["activations"])
    parts = {"weights": shape.parameters * size, "activations": more, "buffers": (0 if gpu else int(_HELD * more)) - head}
    return replace(need, parts=need.parts | {name: need.parts[name] + value for name, value in parts.items()})


def activations(shape: Shape, tokens: int, size: int, *, checkpointing: bool) -> int:
    """What a forward pass of `tokens` keeps for its backward pass, bytes; `size` bytes an element.

    A layer keeps, per token: of each of its two norms the float32 input, the normalised input and the output; queries, keys,
    values and the attention's output, and, where heads are normalised, those norms' inputs twice; of a gated feed-forward layer
    the gate before and after its nonlinearity, the other factor and the product, of a plain one five tensors of a GELU that is
    written out. This is the count of Korthikanti et al., arXiv:2205.05198, section 4.1 (34 s b h bytes a layer), for grouped
    queries and gated layers, without dropout masks, and without its 5 a s / h: fused attention keeps no scores. With
    checkpointing (its section 5): each layer's input, and all of one layer.
    """
    norms = 2 * shape.hidden * (4 + 2 * size)
    if shape.head_norms:
        norms += (shape.heads + shape.kv_heads) * shape.head_size * (4 + size)
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_size * size
    feed_forward = (4 if shape.gated else 5) * shape.intermediate * size
    layer = norms + attention + feed_forward
    return tokens * (shape.layers * shape.hidden * size + layer if checkpointing else shape.layers * layer)


def kv_bytes_per_token(shape: Shape, dtype: str, split: int = 1) -> int:
    """Keys and values of one token in all layers, on each of `split` devices: a head is never split, only repeated."""
    return 2 * shape.layers * -(-shape.kv_heads // split) * shape.head_size * BYTES[dtype]


def engine_need(
    role: str,
    shape: Shape,
    config: RolloutConfig | LocalTeacherConfig,
    *,
    dtype: str,
    devices: int,
    split: int,
    longest: int,
    gpu: int | None,
    scores_prompts: bool = False,
) -> Need:
    """A vLLM engine whose weights are divided over `split` devices. `gpu`: bytes of a GPU, None on a CPU.

    The key-value cache takes what weights and one forward pass leave of gpu_memory_utilization; on a CPU it is kv_cache_gib.
    """
    size = BYTES[dtype]
    tokens = _ENGINE_TOKENS if gpu is not None else max(longest, 4096)
    width = 4 * shape.hidden + (2 * shape.intermediate + 2 * shape.heads * shape.head_size) // split
    rows = min(longest, tokens) if scores_prompts else config.max_sequences
    parts = {
        "weights": shape.parameters * size // split,
        "activations": tokens * width * size,
        "logits": rows * shape.vocabulary * (size + 8),
        "buffers": _PROCESS,
    }
    cache = int(config.kv_cache_gib * GIB)
    if gpu is not None:
        cache = max(0, int(gpu * config.gpu_memory_utilization) - sum(parts.values()))
    allowance = config.gpu_memory_utilization if gpu is not None else 1.0
    return Need(role, devices, parts | {"cache": cache}, 0, allowance, longest * kv_bytes_per_token(shape, dtype, split))


def hf_need(role: str, shape: Shape, *, dtype: str, devices: int, split: int, tokens: int, logits: bool) -> Need:
    """A frozen transformers model that reads `tokens` at a time; over several devices its weights are partitioned by ZeRO 3.

    Without a backward pass one layer's tensors exist at a time. `logits`: it hands out log-probabilities, which are formed of
    all tokens at once, and not hidden states.
    """
    size = BYTES[dtype]
    layer = shape.hidden * (4 + 5 * size) + (2 * shape.heads + 2 * shape.kv_heads) * shape.head_size * size
    parts = {
        "weights": shape.parameters * size // split,
        "activations": tokens * (layer + 3 * shape.intermediate * size),
        "logits": tokens * shape.vocabulary * (size + 8) if logits else 0,
        "buffers": _PROCESS + (min(shape.parameters, _GATHERED) * size if split > 1 else 0),
    }
    return Need(role, devices, parts)


def both(first: Need, second: Need) -> Need:
    """Two models in the same process, such as a teacher that scores in transformers and writes in vLLM."""
    parts = {part: first.parts.get(part, 0) + second.parts.get(part, 0) for part in first.parts | second.parts}
    parts["buffers"] -= _PROCESS
    return Need(first.role, first.devices, parts, least_cache=first.least_cache + second.least_cache)


def score_bytes_per_token(config: TeacherConfig, hidden: int) -> int:
    """What a teacher's payload brings to the learner for each token."""
    if config.payload == "hidden":
        return hidden * BYTES[config.dtype]
    return 4 + (8 * config.top_k if config.payload == "top_k" else 0)
