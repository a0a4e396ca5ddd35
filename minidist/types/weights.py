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
class Probe:
    """Token sequences and the learner's log-probabilities of them, which an engine must reproduce after a weight sync.

    tokens [B, S] int32; logprobs [B, S-1] float32, nats: entry s is the log-probability of tokens[:, s + 1].
    """

    tokens: Array
    logprobs: Array
