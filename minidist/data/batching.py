"""Rollouts to streams, streams to flat micro-batches. The only module that shifts labels.

Axes: S positions of a row, L loss tokens, N tokens of a micro-batch.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

import numpy as np

from minidist.types import (
    Array,
    Credit,
    KeptScores,
    Rollout,
    Row,
    Scores,
    Stream,
    TeacherScores,
    Writer,
    members_of,
    with_members,
)

PerToken = TypeVar("PerToken", TeacherScores, Credit)

PADDING = 0.05
"""Largest part of a rectangle of rows that may be padding."""


def collate(
    name: str,
    rollouts: Sequence[Rollout],
    scores: Sequence[Scores] | None = None,
    *,
    objective: str | None = None,
    weight: float = 1.0,
    stale: bool = False,
) -> Stream:
    """A stream of the rollouts' generated tokens, with a teacher's `scores` of each rollout if it was scored.

    The generated tokens are the labels: the model's output at position s - 1 predicts the token at position s. `objective`:
    name of the stream's objective; None: the name of the stream. `stale`: an earlier student may have written the text, so the
    rows keep the log-probabilities with which it did.

    >>> prompt = Prompt(0, np.array([5, 6, 7]), "")
    >>> rollout = Rollout(prompt, np.array([8, 9]), None, np.array([0, 0]), Finish.STOP)
    >>> stream = collate("main", [rollout])
    >>> row = stream.rows[0]
    >>> row.tokens.tolist(), row.outputs.tolist(), row.labels.tolist(), stream.loss_tokens
    ([5, 6, 7, 8, 9], [2, 3], [8, 9], 2)
    """
    pairs = zip(rollouts, scores or [None] * len(rollouts), strict=True)
    rows = tuple(_row(rollout, row_scores, stale) for rollout, row_scores in pairs)
    return Stream(name, rows, name if objective is None else objective, _loss_tokens(rows), weight)


def _row(rollout: Rollout, scores: Scores | None, stale: bool) -> Row:
    tokens_S, start = np.concatenate([rollout.prompt.tokens, rollout.tokens]), len(rollout.prompt.tokens)
    labels_L, outputs_L = tokens_S[start:].astype(np.int64), np.arange(start - 1, len(tokens_S) - 1, dtype=np.int64)
    assert scores is None or scores.tokens == len(labels_L), "scores must have one entry a generated token"
    written_L = _written(rollout) if stale else None
    if (labelled := rollout.labelled) is not None:
        labels_L, outputs_L, scores = labels_L[labelled], outputs_L[labelled], scores and scores.at(labelled)
        written_L = None if written_L is None else written_L[labelled]
    return Row(tokens_S, outputs_L, labels_L, scores, written_logprob=written_L, teacher=rollout.prompt.teacher)


def _written(rollout: Rollout) -> Array:
    """The log-probabilities [T] of the tokens that the student chose, NaN of all others. Replayed text has none."""
    chosen = rollout.writer is Writer.STUDENT and rollout.logprobs is not None
    return np.asarray(rollout.logprobs if chosen else np.full(len(rollout.tokens), np.nan), dtype=np.float32)


def _loss_tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.labels) for row in rows)


def _with_rows(stream: Stream, rows: tuple[Row, ...]) -> Stream:
    """The stream with other rows, and their own count of loss tokens."""
    return replace(stream, rows=rows, loss_tokens=_loss_tokens(rows))


def share_out(lengths: Sequence[int], ranks: int, prompts: Sequence[Hashable] | None = None) -> list[list[int]]:
    """Indices of the rows of each rank, ascending: the longest row first, each to the rank with the fewest tokens so far.

    Rows with the same of the `prompts` go to one rank, which computes the prompt once, unless that gives a rank more than a
    twentieth more tokens.

    >>> share_out([3, 9, 4, 4], 2)
    [[1], [0, 2, 3]]
    >>> share_out([5, 5, 5, 5], 2, ["a", "b", "a", "b"])
    [[0, 2], [1, 3]]
    """
    alone = _dealt([[index] for index in range(len(lengths))], lengths, ranks)
    if prompts is None or ranks == 1:
        return alone
    rows: dict[Hashable, list[int]] = {}
    for index, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(index)
    together = _dealt(list(rows.values()), lengths, ranks)
    most = [max(sum(lengths[index] for index in share) for share in shares) for shares in (together, alone)]
    return together if most[0] <= 1.05 * most[1] else alone


def _dealt(groups: Sequence[Sequence[int]], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """`share_out` of groups of rows that stay together."""
    tokens, shares = [0] * ranks, [[] for _ in range(ranks)]
    sizes = [sum(lengths[index] for index in group) for group in groups]
    for number in sorted(range(len(groups)), key=lambda number: -sizes[number]):
        rank = tokens.index(min(tokens))
        tokens[rank] += sizes[number]
        shares[rank].extend(groups[number])
    return [sorted(share) for share in shares]


def prompt_of(row: Row) -> bytes:
    """The row's tokens up to the one whose output predicts its first label; rows of one prompt share its computation."""
    return row.tokens[: row.outputs[0] + 1].tobytes() if len(row.outputs) else row.tokens.tobytes()


def unlabelled(row: Row) -> Row:
    """The row's first token without labels: a forward and backward pass over it runs every layer and adds no loss."""
    written = None if row.written_logprob is None else row.written_logprob[:0]
    scores, credit = row.scores and row.scores.at(slice(0)), row.credit
    if credit is not None:
        credit = replace(credit, **{name: values[:0] for name, values in _arrays(credit).items()})
    return Row(row.tokens[:1], row.outputs[:0], row.labels[:0], scores, credit, written, row.teacher)


def in_minibatches(stream: Stream, minibatches: int, passes: int, *, seed: Sequence[int]) -> list[Stream]:
    """The stream cut into `minibatches` streams of about as many rows, each with its own count; drawn anew for each pass.

    >>> stream = Stream("main", tuple(Row(np.zeros(2), np.zeros(n), np.zeros(n)) for n in (1, 2, 3)), "", 6)
    >>> sorted(part.loss_tokens for part in in_minibatches(stream, 3, 1, seed=[0]))
    [1, 2, 3]
    """
    parts: list[Stream] = []
    for number in range(passes):
        order = np.random.default_rng([*seed, number]).permutation(len(stream.rows))
        for share in np.array_split(order, minibatches):
            parts.append(_with_rows(stream, tuple(stream.rows[index] for index in sorted(share))))
    return parts


def in_order(stream: Stream, parts: int) -> list[Stream]:
    """The stream cut into `parts` streams of as many rows each, without reordering."""
    size = len(stream.rows) // parts
    return [_with_rows(stream, stream.rows[start : start + size]) for start in range(0, len(stream.rows), size)]


@dataclass(frozen=True)
class MicroBatch:
    """Several rows laid end to end; N tokens, L loss tokens.

    tokens, positions, sequence [N]: token id, position in its row, index of its row in this micro-batch. outputs [L]: flat
    index of the token whose output predicts labels [L]. rows: indices of the rows in their stream. scores: the teacher's scores
    of the labels; where several teachers give several payloads, those of one kind after another, each of successive rows; empty
    when no teacher scored the stream. credit: the labels' credit under a policy gradient. written_logprob [L]: the labels'
    log-probabilities under the student that wrote them (`types.Row`). teachers: the name of each row's teacher, of several.

    Two rows of 2 and 3 tokens have positions [0, 1, 0, 1, 2] and sequence [0, 0, 1, 1, 1].
    """

    tokens: Array
    positions: Array
    sequence: Array
    outputs: Array
    labels: Array
    rows: tuple[int, ...]
    scores: tuple[Scores, ...] = ()
    credit: Credit | None = None
    written_logprob: Array | None = None
    teachers: tuple[str, ...] = ()


def pack(rows: Sequence[Row], *, budget: int, padded: bool) -> list[MicroBatch]:
    """The micro-batches of `grouped` rows, whose scores are in this process."""
    groups = grouped(rows, budget=budget, padded=padded)
    return [micro_batch([rows[index] for index in group], group) for group in groups]


def grouped(rows: Sequence[Row], *, budget: int, padded: bool) -> list[list[int]]:
    """Indices of the rows of each micro-batch of at most `budget` tokens; a longer row has a micro-batch of its own. No row is
    split or lost.

    `padded`: the micro-batch is computed as a rectangle, so rows of similar length are put together, the budget counts rows
    times the longest row, and padding is at most PADDING of the rectangle. Otherwise rows keep their order, and the budget
    counts their tokens.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].tokens)) if padded else list(range(len(rows)))
    groups: list[list[int]] = []
    for index in order:
        length = len(rows[index].tokens)
        if groups:
            group = groups[-1]
            tokens = sum(len(rows[i].tokens) for i in group) + length
            cost = (len(group) + 1) * length if padded else tokens
            if cost <= budget and tokens >= (1 - PADDING) * cost:
                group.append(index)
                continue
        groups.append([index])
    return groups


def micro_batch(rows: Sequence[Row], indices: Sequence[int]) -> MicroBatch:
    """Rows laid end to end; `indices` are theirs in their stream. Rows with scores of one kind follow one another."""
    kept = any(isinstance(member, KeptScores) for row in rows for member in members_of(row.scores))
    assert not kept, "scores are fetched before the rows are laid out"
    order = _by_kind(rows)
    rows, indices = [rows[number] for number in order], [indices[number] for number in order]
    lengths = [len(row.tokens) for row in rows]
    starts = np.cumsum([0, *lengths[:-1]])
    return MicroBatch(
        tokens=np.concatenate([row.tokens for row in rows]).astype(np.int64),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        sequence=np.repeat(np.arange(len(rows)), lengths),
        outputs=np.concatenate([row.outputs + start for row, start in zip(rows, starts, strict=True)]),
        labels=np.concatenate([row.labels for row in rows]),
        rows=tuple(indices),
        scores=_runs([row.scores for row in rows]),
        credit=_joined([row.credit for row in rows]),
        written_logprob=_laid_out([row.written_logprob for row in rows]),
        teachers=tuple(row.teacher for row in rows),
    )


def _by_kind(rows: Sequence[Row]) -> list[int]:
    """Indices of the rows, those with scores of one kind together, in the order in which the kinds first appear."""
    kinds: dict[Hashable, list[int]] = {}
    for index, row in enumerate(rows):
        kinds.setdefault(_kind_of_scores(row.scores), []).append(index)
    return [index for members in kinds.values() for index in members]


def _kind_of_scores(scores: Scores | None) -> Hashable:
    """What scores must have in common to be laid end to end: payload, head, and the width of every array."""
    return tuple((*_kind(member), *(each.shape[1:] for each in _arrays(member).values())) for member in members_of(scores))


def _runs(scores: Sequence[Scores | None]) -> tuple[Scores, ...]:
    """The rows' scores laid end to end, as long as they are of one kind."""
    found = []
    for kind, group in groupby(scores, key=_kind_of_scores):
        assert kind or all(each is None for each in scores), "all rows of a stream have scores, or none has"
        alike = [each for each in group if each is not None]
        members = [_joined(each) for each in zip(*map(members_of, alike), strict=True)]
        found += [with_members(alike[0], tuple(each for each in members if each is not None))] if alike else []
    return tuple(found)


def _laid_out(arrays: Sequence[Array | None]) -> Array | None:
    """The rows' arrays end to end."""
    present = [array for array in arrays if array is not None]
    assert len(present) in (0, len(arrays)), "all rows of a stream have written log-probabilities, or none has"
    return np.concatenate(present) if present else None


def _joined(records: Sequence[PerToken | None]) -> PerToken | None:
    """The rows' credit, or their scores of one kind, laid end to end."""
    present = [record for record in records if record is not None]
    if not present:
        return None
    assert len(present) == len(records), "all rows of a stream have credit, or none has"
    assert len({_kind(record) for record in present}) == 1, "scores of several kinds are laid out one kind after another"
    names = _arrays(present[0])
    return replace(present[0], **{name: np.concatenate([getattr(record, name) for record in present]) for name in names})


def _arrays(record: TeacherScores | Credit) -> dict[str, Array]:
    """The per-token arrays of a record, by the names of their fields."""
    return {name: value for name, value in vars(record).items() if isinstance(value, np.ndarray)}


def _kind(record: TeacherScores | Credit) -> tuple[tuple[str, Any], ...]:
    """The fields of a record, and the values of those that are not arrays."""
    return tuple((name, "array" if isinstance(value, np.ndarray) else value) for name, value in vars(record).items())
