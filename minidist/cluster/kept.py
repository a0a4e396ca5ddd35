"""Scores that stay in Ray's object store, on the node of the teacher that made them, until a learner's rank needs them."""

from collections.abc import Sequence
from dataclasses import replace

from minidist.errors import ScoresLostError
from minidist.types import KeptScores, Row, TeacherScores, members_of, with_members

SMALL = 100 * 1024
"""Bytes of scores that travel with the answer: Ray itself sends results of this size without the object store."""


def keep(scores: TeacherScores, keeper: str) -> TeacherScores:
    """The scores, left in the object store of this actor's node unless they are small."""
    if scores.nbytes < SMALL:
        return scores
    import ray

    left = {"reference": ray.put(scores), "count": scores.tokens, "size": scores.nbytes, "keeper": keeper}
    return KeptScores(scores.payload, scores.logprobs, hidden_dtype=scores.hidden_dtype, head=scores.head, **left)


def at_hand(scores: Sequence[TeacherScores]) -> list[TeacherScores]:
    """The scores with all their arrays in this process; what is on this node is shared, not copied.

    Raises ScoresLostError where scores are gone, because the teacher that kept them has died.
    """
    kept = [each for each in scores if isinstance(each, KeptScores)]
    if not kept:
        return list(scores)
    import ray
    from ray.exceptions import ObjectLostError

    try:
        found = iter(ray.get([each.reference for each in kept]))
    except ObjectLostError as error:
        raise ScoresLostError(
            "a teacher died, and with it scores that are needed; give the same command again to resume"
        ) from error
    return [each.parts_of(next(found)) if isinstance(each, KeptScores) else each for each in scores]


def fetched(rows: Sequence[Row]) -> list[Row]:
    """The rows with their scores `at_hand`."""
    scores = iter(at_hand([member for row in rows for member in members_of(row.scores)]))

    def with_scores(row: Row) -> Row:
        if row.scores is None:
            return row
        return replace(row, scores=with_members(row.scores, tuple(next(scores) for _ in members_of(row.scores))))

    return [with_scores(row) for row in rows]
