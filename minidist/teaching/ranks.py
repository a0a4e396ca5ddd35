"""The ranks of a lesson's learner as one learner: they share the rows in equal parts."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from minidist.concurrency import together
from minidist.teaching.learner import LessonLearner, Whose
from minidist.types import Array, Exercise, Judged, LabelledRow, Update

T = TypeVar("T")


class LessonRanks:
    """Each rank gets an equal run of consecutive rows, so that groups of rows stay whole. Verbs go to all ranks at once, since
    each waits for the others' gradients."""

    def __init__(self, members: Sequence[LessonLearner]) -> None:
        self.members = list(members)

    async def update(self, exercise: Exercise) -> Update:
        updates = await together(rank.update(part) for rank, part in zip(self.members, self._parts(exercise), strict=True))
        influences = [update.influence for update in updates if update.influence is not None]
        return replace(updates[0], influence=np.concatenate(influences) if influences else None)

    async def judge(self, whose: Whose, rows: Sequence[LabelledRow]) -> Judged:
        shares = [rows[part] for part in _slices(len(rows), len(self.members))]
        parts = await together(rank.judge(whose, share) for rank, share in zip(self.members, shares, strict=True))
        columns = zip(*((part.predicted, part.labels, part.loss) for part in parts), strict=True)
        return Judged(*map(np.concatenate, columns))

    async def influence(self, exercise: Exercise) -> Array:
        parts = zip(self.members, self._parts(exercise), strict=True)
        return np.concatenate(await together(rank.influence(part) for rank, part in parts))

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        """Any other verb: all ranks take part, and the result is that of the first."""

        async def call(*arguments: Any) -> Any:
            return (await together(getattr(rank, verb)(*arguments) for rank in self.members))[0]

        return call

    def _parts(self, exercise: Exercise) -> list[Exercise]:
        """Each rank's rows. The ranks must divide the rows of the step, since a rank's mean is that of its part."""
        ranks = len(self.members)
        shares = [_shares(rows, ranks) for rows in (exercise.student, exercise.teacher, exercise.feedback)]
        return [replace(exercise, student=s, teacher=t, feedback=f) for s, t, f in zip(*shares, strict=True)]


def _shares(rows: tuple[T, ...], ranks: int) -> list[tuple[T, ...]]:
    assert len(rows) % ranks == 0, f"{len(rows)} rows are not divided by {ranks} ranks"
    return [rows[part] for part in _slices(len(rows), ranks)]


def _slices(count: int, parts: int) -> list[slice]:
    """Consecutive slices, as equal as can be."""
    edges = [count * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]
