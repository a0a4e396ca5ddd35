"""How much memory each role needs on each of its devices, computed from shapes: nothing is measured, no weights are read.

Counted are the tensors that last, or that grow with a setting. A few per cent of fragmentation and workspace are not.
tests/benchmarks/memory.py compares the learner's estimate with the memory that a process takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from minidist.config.engines import engine_limits
from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.lessons import LessonConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import LocalTeacherConfig, TeacherConfig

if TYPE_CHECKING:
    from minidist.models.shape import Shape

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Under ZeRO the learner's ranks divide these tensors from this stage on (Rajbhandari et al., arXiv:1910.02054, section 5).
_DIVIDED_FROM = {"optimizer": 1, "gradients": 2, "weights": 3}
# DeepSpeed's defaults: elements of its reduction bucket, and of parameters that ZeRO 3 keeps gathered at one time.
_BUCKET, _GATHERED = 500_000_000, 1_000_000_000
# Tables of float32 [chunk, vocabulary] that exist at one time in the loss's backward pass, with a teacher's or without.
_TABLES_WITH_TEACHER, _TABLES = 6, 4
# Share of the activations that glibc's allocator keeps from one micro-batch to the next on a CPU: measured 0.5 to 1. With
# MALLOC_MMAP_THRESHOLD_=1048576 the allocator keeps nothing, and the update of a small model takes a quarter longer.
ALLOCATOR_SHARE = 0.8
# Libraries, allocator and, on a GPU, the CUDA context of each process.
PROCESS_BYTES = GIB // 2


@dataclass(frozen=True)
class Need:
    """Memory of a role: bytes on each of its devices by purpose, and bytes of host memory beside each process.

    Args:
        role: rollout, teacher or learner.
        devices: number of devices of the role.
        parts: bytes on each device by purpose: weights, gradients, optimizer, activations, logits, cache, buffers.
        host: bytes that each process keeps in host memory (offloaded tensors).
        allowance: share of a device's memory that the role may take.
        least_cache: bytes of the keys and values of one longest sequence; an engine with a smaller cache does not start.
        name: key of the teacher, of several; empty elsewhere.
    """

    role: str
    devices: int
    parts: dict[str, int] = field(default_factory=dict)
    host: int = 0
    allowance: float = 1.0
    least_cache: int = 0
    name: str = ""

    @property
    def shown(self) -> str:
        """The role for people."""
        return self.name or self.role

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def least(self) -> int:
        """`total`, with the smallest cache that works."""
        return self.total - self.parts.get("cache", 0) + self.least_cache


@dataclass(frozen=True)
class TrainedModel:
    """A model in the learner's processes.

    Args:
        shape: of the model.
        config: of the learner.
        dtype: precision of the weights.
        ranks: number of the learner's processes.
        tokens: of the largest micro-batch.
        gpu: whether the ranks run on GPUs.
    """

    shape: "Shape"
    config: LearnerConfig
    dtype: str
    ranks: int
    tokens: int
    gpu: bool

    @property
    def kept_activations(self) -> int:
        """Bytes of one micro-batch's activations."""
        size, checkpointing = BYTES[self.dtype], self.config.activation_checkpointing
        kept = activations(self.shape, self.tokens, size, checkpointing=checkpointing)
        return kept + (masks(self.shape, self.tokens, size, checkpointing=checkpointing) if self.masked else 0)

    @property
    def masked(self) -> bool:
        """Whether attention takes a mask of all pairs of a micro-batch's tokens: packed rows on a GPU without a kernel that
        takes their lengths. On a CPU rows attend by segments."""
        return self.gpu and self.config.layout == "packed" and not (BYTES[self.dtype] == 2 and find_spec("flash_attn"))

    def allocator(self, activation_bytes: int) -> int:
        """Bytes that the allocator keeps for the next micro-batch."""
        return 0 if self.gpu else int(ALLOCATOR_SHARE * activation_bytes)


@dataclass(frozen=True)
class ServedModel:
    """A frozen model of a role: every `split` x `stages` of its `devices` hold one copy together. `split`: parts of each layer;
    `stages`: groups of devices to which the layers are dealt."""

    role: str
    shape: "Shape"
    dtype: str
    devices: int
    split: int
    stages: int = 1

    @property
    def layers(self) -> int:
        """Most layers that a device holds a part of."""
        return -(-self.shape.layers // self.stages)

    @property
    def weights(self) -> int:
        """Bytes of the weights on the device that holds most: its layers, and the embedding or the output head."""
        end = self.shape.vocabulary * self.shape.hidden if self.stages > 1 else 0
        most = (self.shape.parameters - end) * self.layers // self.shape.layers + end
        return most * BYTES[self.dtype] // self.split

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token on each device: a head is never split, only repeated."""
        heads = -(-self.shape.kv_heads // self.split)
        return 2 * self.layers * heads * self.shape.head_size * BYTES[self.dtype]


def learner_need(model: TrainedModel, *, teacher_head: int | None = None) -> Need:
    """One rank of the learner. `teacher_head`: bytes of the teacher's head, which is applied to hidden states; None without.

    With P parameters of b bytes, T of them trained, N ranks, and Adam:

        tensor            bytes                                              divided by N from
        weights           P b                                                ZeRO 3
        a second time     P b / G with learner.parameter_group G             -
        gradients         T b; T 4 under ZeRO 2 and 3, which add in float32  ZeRO 2
        float32 gradients T 4, for the optimizer step; none without ZeRO     ZeRO 1 (under ZeRO 3 at most 1e9 elements)
        optimizer         T (4 + 8): float32 master copy, two moments        ZeRO 1
        bucket            5e8 elements of b bytes, on a CPU at most T        -
        gathered weights  at most 1e9 elements of b bytes, under ZeRO 3      -

    (Rajbhandari et al., arXiv:1910.02054, section 5, where b = 2 and the 12 bytes are K.) float32 weights have no master copy
    in plain torch and under ZeRO 0 and 3. Plain torch keeps the moments in the precision of the weights, SGD has none.
    """
    config, shape, size = model.config, model.shape, BYTES[model.dtype]
    plain = config.backend == "single"
    stage = 0 if plain else config.zero_stage
    ranks = {tensor: model.ranks if stage >= first else 1 for tensor, first in _DIVIDED_FROM.items()}
    moments = 0 if config.optimizer.type == "sgd" else 2 * (size if plain else 4)
    master = 4 if not plain and (size < 4 or stage in (1, 2)) else 0
    weights = shape.parameters * size // ranks["weights"]
    again = 0 if config.parameter_group is None else shape.parameters * size // config.parameter_group
    optimizer = shape.trainable * (moments + master) // ranks["optimizer"]
    stepped = _float32_gradients(shape.trainable // model.ranks, stage)
    kept = model.kept_activations
    offloads_optimizer, offloads_weights = model.gpu and config.offload_optimizer, model.gpu and config.offload_parameters
    tables = _TABLES if teacher_head is None else _TABLES_WITH_TEACHER
    summed = shape.trainable * (4 if stage >= 2 else size) // ranks["gradients"]
    parts = {
        "weights": (0 if offloads_weights else weights) + again,
        "gradients": summed + (0 if offloads_optimizer else stepped),
        "optimizer": 0 if offloads_optimizer else optimizer,
        "activations": kept,
        "logits": min(config.chunk(shape.vocabulary), model.tokens) * shape.vocabulary * 4 * tables,
        "buffers": _zero_buffers(model, stage) + (teacher_head or 0) + model.allocator(kept) + PROCESS_BYTES,
    }
    host = (optimizer + stepped if offloads_optimizer else 0) + (weights if offloads_weights else 0)
    return Need("learner", model.ranks, parts, host=host)


def _float32_gradients(elements: int, stage: int) -> int:
    """Bytes of a rank's gradients as the optimizer step reads them."""
    return 0 if stage == 0 else 4 * (min(elements, _GATHERED) if stage == 3 else elements)


def _zero_buffers(model: TrainedModel, stage: int) -> int:
    """Bytes of DeepSpeed's reduction bucket and, under ZeRO 3, of gathered parameters."""
    size = BYTES[model.dtype]
    bucket = (_BUCKET if model.gpu else min(_BUCKET, model.shape.trainable)) * size if stage else 0
    gathered = min(model.shape.parameters, _GATHERED) * size if stage == 3 and model.ranks > 1 else 0
    return bucket + gathered


def with_prompted_teacher(need: Need, teacher: TrainedModel) -> Need:
    """`need` of a rank that also holds a whole teacher, frozen but for its soft prompt, with a backward pass through it.

    The head that the learner applies to hidden states is then the teacher's own and not a copy; and the activations of the
    two models never exist at the same time.
    """
    size = BYTES[teacher.dtype]
    head = teacher.shape.vocabulary * teacher.shape.hidden * size
    more = max(0, teacher.kept_activations - need.parts["activations"])
    added = {"weights": teacher.shape.parameters * size, "activations": more, "buffers": teacher.allocator(more) - head}
    return replace(need, parts=need.parts | {part: need.parts[part] + value for part, value in added.items()})


@dataclass(frozen=True)
class LessonModel:
    """A model of a lesson, which every rank holds whole, in float32.

    Args:
        shape: of the task's model.
        optimizer: None for a model that is not trained.
        tokens: of the largest forward pass.
        outputs: logits of that pass.
    """

    shape: "Shape"
    optimizer: OptimizerConfig | None
    tokens: int
    outputs: int

    @property
    def gradient(self) -> int:
        """Bytes of one gradient, or of one copy of the trained weights."""
        return 0 if self.optimizer is None else 4 * self.shape.trainable

    @property
    def moments(self) -> int:
        """Bytes of the optimizer's state."""
        return 2 * self.gradient if self.optimizer is not None and self.optimizer.type == "adamw" else 0


def lesson_need(lesson: LessonConfig, models: Sequence[LessonModel], ranks: int, *, gpu: bool) -> Need:
    """One rank of a lesson. `models`: the student, the teacher, and the lesson's other models, as far as it has them.

    All models and optimizers are held throughout, activations are those of one model at a time. What a step holds beside them
    is counted where it holds most; see `_held`.
    """
    student, *others = models
    teacher = next(iter(others), replace(student, optimizer=None))
    trained = [each for each in models if each.optimizer is not None]
    gradients, copies = max(_held(lesson, student, teacher, max(each.gradient for each in trained)), key=sum)
    kept = [activations(each.shape, each.tokens, 4, checkpointing=False) for each in trained]
    most = 2 * sum(kept) if lesson.type == "meta" else max(kept)  # second order: both models, and the backward pass's own graph
    frozen = [_layer(each.shape, 4) * each.tokens for each in models if each.optimizer is None]
    parts = {
        "weights": sum(4 * each.shape.parameters for each in models),
        "gradients": gradients,
        "optimizer": sum(each.moments for each in trained),
        "copies": copies,
        "activations": max([most, *frozen]),
        "logits": max(each.outputs for each in models) * 4 * (_TABLES if not others else _TABLES_WITH_TEACHER),
        "buffers": PROCESS_BYTES + (0 if gpu else int(ALLOCATOR_SHARE * most)),
    }
    return Need("learner", ranks, parts)


def _held(lesson: LessonConfig, student: LessonModel, teacher: LessonModel, largest: int) -> list[tuple[int, int]]:
    """Bytes of gradients, and of copies of weights and moments, in each part of a step. `largest`: of a model's gradients.

    With S and T bytes of the gradients of student and teacher: MetaDistil's trial update keeps its gradient and the held-out
    one beside a copy of the weights, then the student's gradient with its graph, and adds the teacher's. LGTM's trial step
    keeps a copy of weights and moments; its differences keep the held-out gradient and a copy of the weights, and the
    teacher's step along h two gradients and their sum.
    """
    s, t, state = student.gradient, teacher.gradient, student.moments
    if lesson.type == "meta":
        return [(2 * s, s), (3 * s + t, 0), ((3 if lesson.loss else 1) * t, 0), (s, 0)]
    if lesson.type == "lgtm" and lesson.coefficient:
        added = {
            "hvp": [(s + 2 * t, s), (s + 3 * t, 0)],
            "explicit": [(s, s), (s + t, 0)],
            "reweight": [(s, s), (s + t, 0)],
        }
        return [(s, s + state), *added[lesson.influence], (2 * s, 0)]
    if lesson.type == "online" and lesson.order == "together":
        return [(s + t, 0)]
    return [(largest, 0)]


def activations(shape: "Shape", tokens: int, size: int, *, checkpointing: bool) -> int:
    """Bytes that a forward pass of `tokens` keeps for its backward pass; `size` bytes an element.

    A layer keeps, per token: of each of its two norms the float32 input, the normalised input and the output, of a LayerNorm
    input and output; queries, keys, values and the attention's output; where heads are normalised, the inputs of those norms
    twice; of a gated feed-forward layer the gate before and after its nonlinearity, the other factor and the product; of a
    plain one the nonlinearity's input and output, or five tensors of a GELU that is written out. This is the count of
    Korthikanti et al., arXiv:2205.05198, section 4.1 (34 s b h bytes a layer), for grouped queries and gated layers, without
    dropout masks, and without its 5 a s / h: fused attention keeps no scores. With checkpointing (its section 5): each layer's
    input, and all of one layer.
    """
    norms = 2 * shape.hidden * (2 * size if shape.layer_norms else 4 + 2 * size)
    if shape.head_norms:
        norms += (shape.heads + shape.kv_heads) * shape.head_size * (4 + size)
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_size * size
    feed_forward = (4 if shape.gated else 2 if shape.one_kernel else 5) * shape.intermediate * size
    layer = norms + attention + feed_forward
    return tokens * (shape.layers * shape.hidden * size + layer if checkpointing else shape.layers * layer)


def masks(shape: "Shape", tokens: int, size: int, *, checkpointing: bool) -> int:
    """Bytes that a forward pass keeps for its backward pass where attention takes a mask: in each layer the mask
    [tokens, tokens], `size` bytes an element, and keys and values repeated for every head, which a masked kernel asks for."""
    repeated = 2 * (shape.heads - shape.kv_heads) * shape.head_size * tokens if shape.heads > shape.kv_heads else 0
    return size * (tokens**2 + repeated) * (1 if checkpointing else shape.layers)


def engine_need(
    model: ServedModel,
    config: RolloutConfig | LocalTeacherConfig,
    *,
    longest: int,
    gpu: int | None,
    gives: Literal["text", "scores", "hidden"] = "text",
) -> Need:
    """A vLLM engine. The key-value cache takes what weights and one forward pass leave of gpu_memory_utilization; on a CPU
    it is kv_cache_gib.

    Args:
        model: in the engine.
        config: the engine's settings.
        longest: tokens of the longest sequence.
        gpu: bytes of a GPU; None on a CPU.
        gives: scores are log-probabilities of prompts, and need logits at all of their tokens; hidden states need no logits.
    """
    shape, size = model.shape, BYTES[model.dtype]
    limits = engine_limits(config, longest=longest, on_gpu=gpu is not None, pooling=gives == "hidden")
    width = 4 * shape.hidden + (2 * shape.intermediate + 2 * shape.heads * shape.head_size) // model.split
    rows = {"text": limits.sequences, "scores": min(longest, limits.tokens), "hidden": 0}[gives]
    parts = {"weights": model.weights, "activations": limits.tokens * width * size}
    parts |= {"logits": rows * shape.vocabulary * (size + 8), "buffers": PROCESS_BYTES}
    cache, allowance = int(config.kv_cache_gib * GIB), 1.0
    if gpu is not None:
        allowance = config.gpu_memory_utilization
        cache = max(0, int(gpu * allowance) - sum(parts.values()))
    least_cache = longest * model.kv_bytes_per_token
    return Need(model.role, model.devices, parts | {"cache": cache}, 0, allowance, least_cache)


def hf_need(model: ServedModel, *, tokens: int, logits: bool) -> Need:
    """A frozen transformers model that reads `tokens` at a time; over several devices ZeRO 3 partitions its weights.

    Without a backward pass one layer's tensors exist at a time. `logits`: the model gives log-probabilities, which are formed
    of all tokens at once, and not hidden states.
    """
    shape, size = model.shape, BYTES[model.dtype]
    parts = {"weights": model.weights, "activations": tokens * _layer(shape, size)}
    parts["logits"] = tokens * shape.vocabulary * (size + 8) if logits else 0
    parts["buffers"] = PROCESS_BYTES + (min(shape.parameters, _GATHERED) * size if model.split > 1 else 0)
    return Need(model.role, model.devices, parts)


def _layer(shape: "Shape", size: int) -> int:
    """Bytes of one layer's tensors for each token, without a backward pass."""
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_size * size
    return shape.hidden * (4 + 5 * size) + attention + 3 * shape.intermediate * size


def in_one_process(first: Need, second: Need) -> Need:
    """Two models in one process, such as a teacher that scores in transformers and writes in vLLM."""
    parts = {part: first.parts.get(part, 0) + second.parts.get(part, 0) for part in first.parts | second.parts}
    parts["buffers"] -= PROCESS_BYTES
    return Need(first.role, first.devices, parts, least_cache=first.least_cache + second.least_cache)


def score_bytes_per_token(config: TeacherConfig, hidden: int) -> int:
    """Bytes of a teacher's payload for each token; `hidden`: its hidden size."""
    if config.payload == "hidden":
        return hidden * BYTES[config.dtype]
    return 4 + (8 * config.top_k if config.payload == "top_k" else 0)
