"""What a teacher returns of a rollout."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from minidist.types.arrays import Array
from minidist.types.rollouts import Rollout


class Payload(StrEnum):
    """What a teacher returns for each token, from the poorest payload to the richest; see `TeacherScores`."""

    SAMPLED = "sampled"
    TOP_K = "top_k"
    HIDDEN = "hidden"

    def serves(self, needed: str) -> bool:
        """Whether an objective that needs `needed` can use this payload: a richer payload serves every poorer need.

        >>> Payload.HIDDEN.serves("top_k"), Payload.SAMPLED.serves("top_k")
        (True, False)
        """
        order = list(Payload)
        return order.index(self) >= order.index(Payload(needed))


@dataclass(frozen=True)
class TeacherScores:
    """The teacher's scores of the T generated tokens of a rollout, in one of three payloads.

    SAMPLED: `logprobs` [T], nats, of the generated tokens. TOP_K: also `top_ids` and `top_logprobs` [T, K], in falling order;
    the tail has the remaining probability. HIDDEN: `hidden` [T, D], the states before the output head. The learner applies the
    teacher's head to them, which gives the exact distribution over the vocabulary at a fraction of its bytes. bfloat16 travels
    as uint16; `hidden_dtype` names the real type.
    """

    payload: Payload
    logprobs: Array | None = None
    top_ids: Array | None = None
    top_logprobs: Array | None = None
    hidden: Array | None = None
    hidden_dtype: str = "float32"

    @property
    def tokens(self) -> int:
        """T."""
        counts = {len(array) for array in self._arrays.values()}
        assert len(counts) == 1, "per-token arrays must have one entry a generated token"
        return counts.pop()

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self._arrays.values())

    def at(self, tokens: Array | slice) -> "TeacherScores":
        """The scores of some of the tokens."""
        return replace(self, **{name: array[tokens] for name, array in self._arrays.items()})

    @property
    def _arrays(self) -> dict[str, Array]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


@dataclass(frozen=True, kw_only=True)
class KeptScores(TeacherScores):
    """Scores whose large arrays stay in the object store of the teacher's node, until a learner's rank fetches them.

    `logprobs` [T] are here, since they are small; the other arrays are absent. keeper: name of the teacher's actor, with which
    the scores are lost. reference: of the whole `TeacherScores` in the object store. count: T. size: bytes of all arrays.
    parts: the tokens that are meant, one selection after another. rollout: the text, to score it again; it is not sent along.
    """

    keeper: str
    reference: Any
    count: int
    size: int
    parts: tuple[Array | slice, ...] = ()
    rollout: Rollout | None = None

    @property
    def tokens(self) -> int:
        """T, of all tokens."""
        return self.count

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, wherever they are."""
        return self.size

    def at(self, tokens: Array | slice) -> "KeptScores":
        """The scores of some of the tokens."""
        return replace(self, **{name: array[tokens] for name, array in self._arrays.items()}, parts=(*self.parts, tokens))

    def parts_of(self, scores: TeacherScores) -> TeacherScores:
        """Of scores of all tokens, those of the tokens that are meant."""
        for part in self.parts:
            scores = scores.at(part)
        return scores

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"rollout": None}
