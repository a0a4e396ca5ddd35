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
    as uint16; `hidden_dtype` names the real type. head: name of the teacher, of several, whose output head belongs to `hidden`;
    empty where the run has one teacher.
    """

    payload: Payload
    logprobs: Array | None = None
    top_ids: Array | None = None
    top_logprobs: Array | None = None
    hidden: Array | None = None
    hidden_dtype: str = "float32"
    head: str = ""

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
        return replace(scores, head=self.head)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"rollout": None}


@dataclass(frozen=True)
class MixedScores:
    """The scores of several teachers for the same T tokens, whose distributions are mixed: p = sum of weight * member.

    members: one for each teacher, in the order of `weights`, which are positive and add up to 1.
    """

    members: tuple[TeacherScores, ...]
    weights: tuple[float, ...]

    @property
    def tokens(self) -> int:
        """T."""
        return self.members[0].tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays of all members."""
        return sum(member.nbytes for member in self.members)

    @property
    def logprobs(self) -> None:
        """Of the mixture; unknown before the heads of all teachers are applied."""

    def at(self, tokens: Array | slice) -> "MixedScores":
        """The scores of some of the tokens."""
        return replace(self, members=tuple(member.at(tokens) for member in self.members))


Scores = TeacherScores | MixedScores
"""What one teacher returns of a rollout, or several whose distributions are mixed."""


def members_of(scores: Scores | None) -> tuple[TeacherScores, ...]:
    """The scores of each teacher; none without scores."""
    if scores is None:
        return ()
    return scores.members if isinstance(scores, MixedScores) else (scores,)


def with_members(scores: Scores, members: tuple[TeacherScores, ...]) -> Scores:
    """The scores with others in the place of each teacher's."""
    return replace(scores, members=members) if isinstance(scores, MixedScores) else members[0]
