"""Rollouts and answers to streams, streams to flat micro-batches. The one place where labels are shifted."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from minidist.data.sources import Example
from minidist.types import Array, Credit, Finish, Prompt, Rollout, Row, Stream, TeacherScores, Writer


def collate(
    name: str, rollouts: Sequence[Rollout], scores: Sequence[TeacherScores] | None, *, objective: str, weight: float = 1.0
) -> Stream:
    """A stream of the rollouts' generated tokens, each with its teacher scores, if it has any."""
    rows = tuple(
        _row(np.concatenate([rollout.prompt.tokens, rollout.tokens]), len(rollout.prompt.tokens), scored)
        for rollout, scored in zip(rollouts, scores or [None] * len(rollouts), strict=True)
    )
    return Stream(name, rows, objective, sum(len(row.labels) for row in rows), weight)


def collate_examples(
    name: str,
    examples: Sequence[Example],
    scores: Sequence[TeacherScores] | None = None,
    *,
    objective: str,
    weight: float = 1.0,
) -> Stream:
    """A stream of given text: answers after their prompts, or plain text."""
    given = scores or [None] * len(examples)
    rows = tuple(_row(example.tokens, example.start, scored) for example, scored in zip(examples, given, strict=True))
    return Stream(name, rows, objective, sum(len(row.labels) for row in rows), weight)


def as_rollout(example: Example) -> Rollout:
    """Given text in the shape a teacher scores: what is given is the prompt, the labels are the answer."""
    prompt, labels = Prompt(0, example.tokens[: example.start], ""), example.tokens[example.start :]
    versions = np.full(len(labels), -1, dtype=np.int32)
    return Rollout(prompt, labels, None, versions, Finish.STOP, writer=Writer.DATASET)


def _row(tokens: Array, start: int, scores: TeacherScores | None = None) -> Row:
    """The shift: the output at position s - 1 predicts the token at position s, for every s from `start` on."""
    labels = tokens[start:]
    taught = (scores.logprobs, scores.top_ids, scores.top_logprobs, scores.hidden) if scores else ()
    for values in taught:
        assert values is None or len(values) == len(labels), "per-token arrays must have one entry a generated token"
    return Row(tokens, np.arange(start - 1, len(tokens) - 1, dtype=np.int64), labels.astype(np.int64), scores)


def share_out(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Which rows each rank gets, in order: the longest first, each to the rank with the fewest tokens so far.

    >>> share_out([3, 9, 4, 4], 2)
    [[1], [0, 2, 3]]
    """
    tokens, shares = [0] * ranks, [[] for _ in range(ranks)]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rank = tokens.index(min(tokens))
        tokens[rank] += lengths[index]
        shares[rank].append(index)
    return [sorted(share) for share in shares]


def idle(row: Row) -> Row:
    """The row's first token without any label: a pass over it computes everything and counts for nothing."""
    scores = row.scores
    if scores is not None:
        cut = {
            name: value[:0]
            for name in ("logprobs", "top_ids", "top_logprobs", "hidden")
            if (value := getattr(scores, name)) is not None
        }
        scores = replace(scores, **cut)
    credit = row.credit and Credit(*(getattr(row.credit, field.name)[:0] for field in fields(Credit)))
    return Row(row.tokens[:1], row.outputs[:0], row.labels[:0], scores, credit)


def in_minibatches(stream: Stream, parts: int, passes: int, *, seed: Sequence[int]) -> list[Stream]:
    """The stream's rows in `parts` streams of like size, each with its own count, drawn anew for each of `passes`.

    >>> stream = Stream("main", tuple(Row(np.zeros(2), np.zeros(n), np.zeros(n)) for n in (1, 2, 3)), "", 6)
    >>> sorted(part.loss_tokens for part in in_minibatches(stream, 3, 1, seed=[0]))
    [1, 2, 3]
    """
    drawn: list[Stream] = []
    for number in range(passes):
        order = np.random.default_rng([*seed, number]).permutation(len(stream.rows))
        for share in np.array_split(order, parts):
            rows = tuple(stream.rows[index] for index in sorted(share))
            drawn.append(replace(stream, rows=rows, loss_tokens=sum(len(row.labels) for row in rows)))
    return drawn


def in_turn(stream: Stream, parts: int) -> list[Stream]:
    """The stream's rows in `parts` streams of as many rows, in their order."""
    size = len(stream.rows) // parts
    shares = [stream.rows[start : start + size] for start in range(0, len(stream.rows), size)]
    return [replace(stream, rows=rows, loss_tokens=sum(len(row.labels) for row in rows)) for rows in shares]


@dataclass(frozen=True)
class MicroBatch:
    """Several rows laid end to end; N tokens in all, L loss tokens.

    tokens, positions, sequence [N]: id, place in its row, index of its row. outputs [L]: flat index of the token whose
    output predicts labels [L]. rows: the rows of the stream it holds, by index. scores: the teacher's scores of the L labels,
    in their order; None when no teacher was asked. credit: what they earned, for a policy gradient.
    """

    tokens: Array
    positions: Array
    sequence: Array
    outputs: Array
    labels: Array
    rows: tuple[int, ...]
    scores: TeacherScores | None = None
    credit: Credit | None = None


def pack(rows: Sequence[Row], *, budget: int, padded: bool) -> list[MicroBatch]:
    """Rows into micro-batches of at most `budget` tokens; a row longer than that stands alone. No row is split or lost.

    `padded`: the micro-batch will be computed as a rectangle, so rows of like length are put together and the budget
    counts rows times longest; otherwise rows keep their order and the budget counts their tokens.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].tokens)) if padded else list(range(len(rows)))
    groups: list[list[int]] = []
    for index in order:
        length = len(rows[index].tokens)
        if groups:
            group = groups[-1]
            cost = (len(group) + 1) * length if padded else sum(len(rows[i].tokens) for i in group) + length
            if cost <= budget:
                group.append(index)
                continue
        groups.append([index])
    return [_micro_batch(rows, group) for group in groups]


def _micro_batch(rows: Sequence[Row], group: list[int]) -> MicroBatch:
    lengths = [len(rows[index].tokens) for index in group]
    starts = np.cumsum([0, *lengths[:-1]])
    return MicroBatch(
        tokens=np.concatenate([rows[index].tokens for index in group]).astype(np.int64),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        sequence=np.repeat(np.arange(len(group)), lengths),
        outputs=np.concatenate([rows[index].outputs + start for index, start in zip(group, starts, strict=True)]),
        labels=np.concatenate([rows[index].labels for index in group]),
        rows=tuple(group),
        scores=_joined([rows[index].scores for index in group]),
        credit=_joined_credit([rows[index].credit for index in group]),
    )


def _joined_credit(credits: Sequence[Credit | None]) -> Credit | None:
    given = [each for each in credits if each is not None]
    assert len(given) in (0, len(credits)), "all rows of a stream have earned credit or none"
    return Credit(*(np.concatenate([getattr(each, f.name) for each in given]) for f in fields(Credit))) if given else None


def _joined(scores: Sequence[TeacherScores | None]) -> TeacherScores | None:
    """The rows' scores laid end to end."""
    given = [each for each in scores if each is not None]
    if not given:
        return None
    assert len(given) == len(scores), "a teacher scores all rows of a stream or none"
    assert len({(each.payload, each.hidden_dtype) for each in given}) == 1, "one stream, one payload"

    def joined(arrays: Sequence[Array | None]) -> Array | None:
        held = [array for array in arrays if array is not None]
        assert len(held) in (0, len(arrays)), "one stream, one payload"
        return np.concatenate(held) if held else None

    return TeacherScores(
        given[0].payload,
        logprobs=joined([each.logprobs for each in given]),
        top_ids=joined([each.top_ids for each in given]),
        top_logprobs=joined([each.top_logprobs for each in given]),
        hidden=joined([each.hidden for each in given]),
        hidden_dtype=given[0].hidden_dtype,
    )
