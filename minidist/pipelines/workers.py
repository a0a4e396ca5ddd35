"""What a worker does: it puts the rows of a shard through a step, and writes the shard."""

import asyncio
from collections.abc import Iterable, Iterator

from minidist.data.templates import BadRow
from minidist.pipelines.shards import Result, Shards
from minidist.pipelines.steps import Item, Step
from minidist.pipelines.tally import Tally

Block = tuple[int, list[Item]]
"""The number of a shard that is not written yet, and its rows."""


def missing(items: Iterable[Item], shards: Shards) -> Iterator[Block]:
    """The rows of each shard that is not written yet."""
    rows: list[Item] = []
    for item in items:
        if shards.done(number := item.number // shards.rows):
            continue
        rows.append(item)
        if len(rows) == shards.rows:
            yield number, rows
            rows = []
    if rows:
        yield rows[0].number // shards.rows, rows


def open_at_once(rows_in_flight: int, shard_rows: int) -> int:
    """Shards that a worker has open at one time, so that none of its slots waits for the last rows of a shard."""
    return 2 + rows_in_flight // shard_rows


class ShardWorker:
    """Answers the rows of several shards at one time.

    Args:
        step: the work on a row.
        shards: where results go.
        rows_in_flight: most rows that are answered at one time.
    """

    def __init__(self, step: Step, shards: Shards, rows_in_flight: int) -> None:
        self._step = step
        self._shards = shards
        self._slots = asyncio.Semaphore(rows_in_flight)

    async def write(self, block: Block) -> Tally:
        """Answer and write a shard. Raises DiskFullError, and what roles raise."""
        number, rows = block
        if self._shards.done(number):  # by a worker that died before it could say so
            return Tally.of(self._shards.read(number))
        results = await asyncio.gather(*(self._row(item) for item in rows))
        await asyncio.to_thread(self._shards.write, number, results)
        return Tally.of(results)

    async def _row(self, item: Item) -> Result:
        async with self._slots:
            try:
                return {"key": item.key, **await self._step.run(item)}
            except BadRow as error:
                return {"key": item.key, "error": str(error)}

    async def close(self) -> None:
        await self._step.close()
