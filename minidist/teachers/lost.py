"""A learner whose teachers keep their scores, and what it does when one of them dies with some that it needs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from minidist.errors import ScoresLostError
from minidist.protocols import Learner
from minidist.run.tracking import log
from minidist.teachers.pool import Teachers
from minidist.teachers.routed import RoutedTeachers
from minidist.types import Batch, KeptScores, Measures, Row, Scores, Stream, TeacherScores, Update, members_of, with_members


class RescoringLearner:
    """The learner, but for scores that a teacher takes with it when it dies: the teachers that live make them again.

    Args:
        learner: fetches the scores of its rows.
        teachers: scored them.
    """

    def __init__(self, learner: Learner, teachers: Teachers | RoutedTeachers) -> None:
        self._learner = learner
        self._teachers = teachers

    async def update(self, batch: Batch) -> Update:
        """The batch's optimizer steps."""
        try:
            return await self._learner.update(batch)
        except ScoresLostError as error:
            streams = [stream for streams in batch.steps for stream in streams]
            scored = iter(await self._again(streams, error))
            steps = tuple(tuple(next(scored) for _ in streams) for streams in batch.steps)
            return await self.update(replace(batch, steps=steps))

    async def measure(self, stream: Stream, temperature: float = 1.0, top_p: float = 1.0) -> Measures:
        """Per-token figures of a stream."""
        try:
            return await self._learner.measure(stream, temperature, top_p)
        except ScoresLostError as error:
            (stream,) = await self._again([stream], error)
            return await self.measure(stream, temperature, top_p)

    def __getattr__(self, verb: str) -> Any:
        """Any other verb is the learner's own."""
        return getattr(self._learner, verb)

    async def _again(self, streams: Sequence[Stream], error: ScoresLostError) -> list[Stream]:
        """The streams with new scores in the place of those that were lost. Raises the error where no teacher can make them."""
        alive = await self._teachers.bury()
        lost = {kept.reference: kept for kept in _kept(streams) if kept.keeper not in alive}
        if not alive or not lost:
            raise error
        died = {kept.keeper for kept in lost.values()}
        log.warning("%s died: %d rows are scored again", " and ".join(sorted(died)), len(lost))
        texts = [kept.rollout for kept in lost.values()]
        assert all(texts), "scores are scored again where their text is"
        found = dict(zip(lost, await self._teachers.score([text for text in texts if text is not None]), strict=True))
        return [replace(stream, rows=tuple(_with(row, found) for row in stream.rows)) for stream in streams]


def _kept(streams: Sequence[Stream]) -> Iterator[KeptScores]:
    for stream in streams:
        for row in stream.rows:
            for member in members_of(row.scores):
                if isinstance(member, KeptScores):
                    yield member


def _with(row: Row, found: dict[Any, Scores]) -> Row:
    """The row with the scores that were found for its references."""
    if row.scores is None:
        return row

    def replaced(member: TeacherScores, number: int) -> TeacherScores:
        if not isinstance(member, KeptScores) or member.reference not in found:
            return member
        return member.parts_of(members_of(found[member.reference])[number])

    members = tuple(replaced(member, number) for number, member in enumerate(members_of(row.scores)))
    return replace(row, scores=with_members(row.scores, members))
