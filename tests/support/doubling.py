"""A step of a pipeline without a model, which can fail, die and be watched from other processes."""

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minidist.data.templates import BadRow
from minidist.errors import RoleError
from minidist.pipelines.shards import Shards
from minidist.pipelines.steps import Item
from minidist.pipelines.workers import Block, ShardWorker, missing

SHARD_ROWS, ROWS_IN_FLIGHT = 10, 8


@dataclass(frozen=True)
class Doubling:
    """Doubles the number of a row after a moment.

    Args:
        folder: remembers what was begun: a line in `begun`.
        bad: rows that cannot be used.
        fails_at: row at which a role fails.
        dies_at: row at which the process is killed, once.
        pause: seconds for each row.
    """

    folder: Path
    bad: frozenset[int] = frozenset()
    fails_at: int | None = None
    dies_at: int | None = None
    pause: float = 0.002

    async def run(self, item: Item) -> dict[str, Any]:
        with (self.folder / "begun").open("a") as file:
            file.write(f"{item.number}\n")
        await asyncio.sleep(self.pause)
        if item.number == self.fails_at:
            raise RoleError("the rollout died")
        if item.number == self.dies_at and not (marker := self.folder / "died").exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item.number in self.bad:
            raise BadRow("too long")
        return {"doubled": 2 * item.number, "tokens": 1}

    async def close(self) -> None:
        (self.folder / "closed").touch()


def shards_of(folder: Path) -> Shards:
    return Shards(folder, "jsonl", SHARD_ROWS)


def worker_of(step: Doubling) -> ShardWorker:
    return ShardWorker(step, shards_of(step.folder), ROWS_IN_FLIGHT)


def blocks_of(folder: Path, count: int) -> Iterator[Block]:
    """The missing shards of `count` rows."""
    return missing((Item(number, str(number), {}) for number in range(count)), shards_of(folder))


def written(folder: Path) -> list[dict[str, Any]]:
    shards = shards_of(folder)
    return [result for number in shards.numbers() for result in shards.read(number)]
