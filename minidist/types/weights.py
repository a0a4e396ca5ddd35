"""A model's weights on the way to an engine, and the proof that they arrived."""

from dataclasses import dataclass

from minidist.types.arrays import Array

PROBE_TOKENS = 16
"""Longest sequence of a `Probe`."""


@dataclass(frozen=True)
class Adaptation:
    """What low-rank adapters change: a checkpoint on disk, whose other weights stay as they are.

    base: directory or hub name of the checkpoint. dtype: the precision of the adapted model. scale: alpha / rank. files: the
    name of each tensor of the adapted model to its name in the checkpoint's files. transposed: weights stored as [in, out].
    """

    base: str
    dtype: str
    scale: float
    files: dict[str, str]
    transposed: frozenset[str]


@dataclass(frozen=True)
class Weights:
    """A model's weights for an engine, by names in the checkpoint; bfloat16 travels as uint16, and `dtypes` names the type.

    adaptation: not None where `arrays` are low-rank adapters alone: a weight changes by scale * B A, and A [R, in] and
    B [out, R] have its name with the endings of `models.adapted`.
    """

    version: int
    arrays: dict[str, Array]
    dtypes: dict[str, str]
    adaptation: Adaptation | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays; an array of two names counts once."""
        return sum({id(array): array.nbytes for array in self.arrays.values()}.values())


@dataclass(frozen=True)
class Outline:
    """The tensors of a student as they go over a channel, in this order, decoder layer by decoder layer.

    names: of each tensor, in the checkpoint. dtypes: torch's names. shapes: of the whole tensors. tied: names that share the
    tensor of one of `names` in the same layer, and that name: an output head that is the embedding.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    tied: dict[str, str]

    def untied(self, *, head: bool) -> "Outline":
        """The tied names as tensors of their own, each after the name that it shares; a tied head only if it is asked for."""
        tied = {name: first for name, first in self.tied.items() if head or not name.endswith("lm_head.weight")}
        also = {name: [alias for alias, first in tied.items() if first == name] for name in self.names}
        rows = zip(self.names, self.dtypes, self.shapes, strict=True)
        names, dtypes, shapes = zip(*((each, *rest) for name, *rest in rows for each in (name, *also[name])), strict=True)
        return Outline(names, dtypes, shapes, {})


@dataclass(frozen=True)
class Channel:
    """Where the learner's first rank, process 0, and the processes of all engines meet, so that the one sends weights to the
    others.

    backend: gloo, nccl or ipc. host, port: of the first rank. size: processes that meet. timeout_s: longest wait of a process
    for the others, seconds.
    """

    backend: str
    host: str
    port: int
    size: int
    timeout_s: float


@dataclass(frozen=True)
class Probe:
    """Token sequences and the learner's log-probabilities of them, which an engine must reproduce after a weight sync.

    tokens [B, S] int32; logprobs [B, S-1] float32, nats: entry s is the log-probability of tokens[:, s + 1].
    """

    tokens: Array
    logprobs: Array
