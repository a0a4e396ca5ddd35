"""What is forecast: two models, a workload, the devices of each role, and the ways that the data take."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from minidist.preflight.forecast.rates import SMALL, Rates
from minidist.preflight.memory import BYTES, GIB, ServedModel
from minidist.run.flops import Work

if TYPE_CHECKING:
    from minidist.models.shape import Shape


class Design(StrEnum):
    """What overlaps.

    DISJOINT: nothing; each role has devices of its own, and its turn. COLOCATED: every device serves all roles, one after
    another. STREAMED: answers are scored while others are written. STALE: the next collection is written meanwhile.
    """

    DISJOINT = "disjoint"
    COLOCATED = "colocated"
    STREAMED = "streamed"
    STALE = "stale"


@dataclass(frozen=True)
class Model:
    """A model of this shape in this precision."""

    shape: "Shape"
    dtype: str = "bfloat16"

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.shape.parameters * BYTES[self.dtype]


@dataclass(frozen=True)
class Workload:
    """One step's text.

    Args:
        prompts: of a step.
        samples: answers to each prompt.
        prompt: tokens of a prompt.
        answer: tokens of an answer, on average.
        payload_bytes: of the teacher's scores of a token.
        hidden: whether the payload is hidden states, to which the learner applies the teacher's head.
        top_k: whether an engine gives the likeliest classes of each token.
        updates: optimizer steps on a collection.
    """

    prompts: int
    samples: int
    prompt: float
    answer: float
    payload_bytes: float
    hidden: bool = False
    top_k: bool = False
    updates: int = 1

    @property
    def answers(self) -> int:
        return self.prompts * self.samples

    @property
    def written(self) -> float:
        """Tokens that the student writes."""
        return self.answers * self.answer

    @property
    def read(self) -> float:
        """Tokens that teacher and learner read."""
        return self.answers * (self.prompt + self.answer)

    @property
    def row(self) -> Work:
        """One prompt with its answer."""
        length = self.prompt + self.answer
        return Work(length, length * (length + 1) / 2, self.answer)


@dataclass(frozen=True)
class Layout:
    """Devices and settings of the roles.

    Args:
        rollout, teacher, learner: devices of each role; where they are shared, the same devices.
        rollout_split, teacher_split: devices of one engine, and of one teacher.
        zero: ZeRO stage of the learner.
        micro_batch: tokens of the learner's micro-batch.
        chunk: loss tokens whose logits exist at one time.
        checkpointing: the learner computes each layer's forward pass twice.
        max_sequences: most sequences that an engine decodes at one time.
        cache: bytes of an engine's keys and values. None: nine tenths of its devices' memory, without the weights.
    """

    rollout: int
    teacher: int
    learner: int
    rollout_split: int = 1
    teacher_split: int = 1
    zero: int = 2
    micro_batch: int = 8192
    chunk: int = 1024
    checkpointing: bool = False
    max_sequences: int = 256
    cache: float | None = None

    @property
    def engines(self) -> int:
        return max(1, self.rollout // self.rollout_split)

    @property
    def teachers(self) -> int:
        return max(1, self.teacher // self.teacher_split)


@dataclass(frozen=True)
class Paths:
    """The ways that the data take.

    Args:
        scores: through the driver's object store, or by reference from the teacher's node to the learner's.
        weights: through host memory and the object store, or by a broadcast between devices.
        overlap: whether the learner's communication hides behind its computation.
        head_per_chunk: whether ZeRO 3 fetches the output head for each chunk of the loss.
        even: work is divided as evenly as water, and engines are always full: a bound, as no step can be dealt.
    """

    scores: Literal["driver", "reference"] = "reference"
    weights: Literal["host", "broadcast"] = "host"
    overlap: bool = False
    head_per_chunk: bool = True
    even: bool = False


@dataclass(frozen=True)
class Scenario:
    """All that a forecast needs. `teacher` None: scores come from a server, or from a cache, whose time is not known."""

    student: Model
    teacher: Model | None
    workload: Workload
    layout: Layout
    rates: Rates
    paths: Paths = Paths()
    design: Design = Design.DISJOINT

    def with_layout(self, layout: Layout) -> "Scenario":
        """The same with other devices."""
        return replace(self, layout=layout)

    @property
    def devices(self) -> int:
        """Devices of all roles."""
        dealt = (self.layout.rollout, self.layout.teacher if self.teacher else 0, self.layout.learner)
        return max(dealt) if self.design is Design.COLOCATED else sum(dealt)

    @property
    def update_flops(self) -> float:
        """FLOP/s of a device that trains the student."""
        device = self.rates.device
        return device.small_flops if self.student.shape.parameters < SMALL else device.update_flops

    def nodes(self, devices: int) -> int:
        """Nodes that so many devices fill."""
        return math.ceil(devices / self.rates.per_node)

    def wire(self, devices: int) -> float:
        """Bytes/s of each of so many devices to the others."""
        return self.rates.wires.link if devices <= self.rates.per_node else self.rates.wires.network

    @cached_property
    def kv_token(self) -> int:
        """Bytes of keys and values of a token, on all devices of an engine."""
        split = self.layout.rollout_split
        return split * ServedModel("rollout", self.student.shape, self.student.dtype, split, split).kv_bytes_per_token

    @cached_property
    def slots(self) -> int:
        """Sequences that an engine decodes at one time; its cache holds them at their mean length."""
        layout, cache = self.layout, self.layout.cache
        if cache is None:
            cache = 0.9 * self.rates.device.gib * GIB * layout.rollout_split - self.student.nbytes
        mean = self.workload.prompt + self.workload.answer / 2
        return max(1, min(layout.max_sequences, int(cache / (self.kv_token * mean))))
