"""The ranks of a learner as one learner: they share the rows; results that all of them have are taken from the first."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minidist.concurrency import together
from minidist.data.batching import prompt_of, share_out, unlabelled
from minidist.protocols import Learner
from minidist.types import Batch, Measures, Stream, Update


class LearnerRanks:
    """Each rank gets its share of every stream's rows; the streams' counts stay those of all ranks.

    Verbs are sent to all ranks at once, since each may need the others' parameters. The first failure ends the others' calls.
    """

    def __init__(self, members: Sequence[Learner]) -> None:
        self.members = list(members)

    async def update(self, batch: Batch) -> Update:
        """The batch's optimizer steps, each of all ranks on all its rows."""
        steps = [list(zip(*(self._shares(stream) for stream in streams), strict=True)) for streams in batch.steps]
        parts = [Batch(batch.step, tuple(of_rank)) for of_rank in zip(*steps, strict=True)]
        updates = await together(rank.update(part) for rank, part in zip(self.members, parts, strict=True))
        return updates[0]

    async def measure(self, stream: Stream, *distribution: float) -> Measures:
        """Per-token figures of a stream, in row order. `distribution`: temperature and top_p, as of `Learner.measure`."""
        shares = self._shares(stream)
        parts = await together(rank.measure(share, *distribution) for rank, share in zip(self.members, shares, strict=True))
        return _in_order(parts, self._dealt(stream))

    async def save(self, path: Path) -> dict[str, str]:
        """Write the student, each rank its share; the sums of all files."""
        return _joined(await together(rank.save(path) for rank in self.members))

    async def save_state(self, path: Path) -> dict[str, str]:
        """Write the training state, each rank its share; the sums of all files."""
        return _joined(await together(rank.save_state(path) for rank in self.members))

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        """Any other verb of a learner: all ranks take part, and the result is that of the first."""

        async def call(*arguments: Any) -> Any:
            return (await together(getattr(rank, verb)(*arguments) for rank in self.members))[0]

        return call

    def _dealt(self, stream: Stream) -> list[list[int]]:
        return share_out([len(row.tokens) for row in stream.rows], len(self.members), list(map(prompt_of, stream.rows)))

    def _shares(self, stream: Stream) -> list[Stream]:
        """Each rank's part of the stream. A rank without rows gets a row without labels: it must take part in every pass."""
        shares = [tuple(stream.rows[index] for index in rows) for rows in self._dealt(stream)]
        return [replace(stream, rows=rows or (unlabelled(stream.rows[0]),)) for rows in shares]


def _joined(sums: Iterable[dict[str, str]]) -> dict[str, str]:
    return {name: found for of_rank in sums for name, found in of_rank.items()}


def _in_order(parts: Sequence[Measures], dealt: Sequence[Sequence[int]]) -> Measures:
    """The ranks' figures as one table in the order of the stream's rows."""
    # A rank without rows measured an unlabelled row, which has no figures.
    used = [(part, np.asarray(rows, dtype=np.int32)) for part, rows in zip(parts, dealt, strict=True) if rows]
    row_L = np.concatenate([rows[part.row] for part, rows in used])
    order = np.argsort(row_L, kind="stable")

    def column(name: str) -> Any:
        values = [getattr(part, name) for part, _ in used]
        return None if any(value is None for value in values) else np.concatenate(values)[order]

    return Measures(row_L[order], *map(column, ("student_logprob", "teacher_logprob", "reverse_kl", "forward_kl")))
