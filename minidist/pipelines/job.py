"""A job: rows of a source through a step into shards, many rows at one time, in memory that does not grow with the source."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from minidist.config.pipelines import FilesConfig
from minidist.data.templates import BadRow
from minidist.errors import DataError
from minidist.pipelines.shards import Result, Shards
from minidist.pipelines.steps import Item, Step

_FEW = 100
"""Rows after which a share of failed rows stops a job."""


@dataclass
class Tally:
    """Counts of rows, all shards together, and of this process's tokens."""

    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    voted: int = 0
    right: int = 0
    right_kept: int = 0
    graded: int = 0
    tokens: int = 0
    truncated: int = 0
    answer_tokens: int = 0

    def add(self, result: Result) -> None:
        """Count a result."""
        self.rows += 1
        if "error" in result:
            self.failed[result["error"][:100]] += 1
            return
        self.tokens += int(result.get("tokens") or 0)
        if "kept" in result:
            self.voted += 1
            self.kept += bool(result["kept"])
            self.answer_tokens += int(result["answer_tokens"])
            self.truncated += bool(result["truncated"])
        if "right" in result:
            answers = result["right"] if isinstance(result["right"], list) else [result["right"]]
            self.graded += len(answers)
            self.right += sum(answers)
            self.right_kept += bool(result["right"] and result.get("kept"))

    def summary(self) -> dict[str, Any]:
        """Counts and shares, for summary.json."""
        failed = sum(self.failed.values())
        found: dict[str, Any] = {"rows": self.rows, "rows_failed": failed, "tokens": self.tokens}
        if failed:
            found["reasons"] = dict(self.failed.most_common(5))
        if self.voted:
            found |= {"rows_kept": self.kept, "accept_frac": self.kept / self.voted}
            found["answer_tokens_mean"] = self.answer_tokens / self.voted
        if self.graded:
            found["accuracy"] = self.right / self.graded
        if self.graded and self.voted:
            found["accuracy_kept"] = self.right_kept / self.kept if self.kept else None
        return found


class Job:
    """Runs a step on every row of a source that no shard holds yet.

    Args:
        step: the work on a row.
        shards: where results go.
        files: how many rows at one time, and how many may fail.
        progress: called after each shard with the rows done, the tally and the tokens a second.
    """

    def __init__(self, step: Step, shards: Shards, files: FilesConfig, progress: Callable[[Tally, float, float], None]) -> None:
        self._step = step
        self._shards = shards
        self._files = files
        self._progress = progress
        self._tally = Tally()
        self._slots = asyncio.Semaphore(files.rows_in_flight)
        self._shards_open = asyncio.Semaphore(2 + files.rows_in_flight // files.shard_rows)
        self._started = time.perf_counter()
        self._new = Tally()

    async def run(self, items: Iterable[Item]) -> Tally:
        """All shards. The first failure of a role, or a full disk, cancels what is under way; whole shards stay."""
        for number in self._shards.numbers():
            for result in self._shards.read(number):
                self._tally.add(result)
        async with asyncio.TaskGroup() as group:
            for number, rows in self._missing(items):
                await self._shards_open.acquire()
                group.create_task(self._shard(number, rows))
                await asyncio.sleep(0)
        return self._tally

    def _missing(self, items: Iterable[Item]) -> Iterator[tuple[int, list[Item]]]:
        """The rows of each shard that is not written yet."""
        rows: list[Item] = []
        for item in items:
            if self._shards.done(number := item.number // self._shards.rows):
                continue
            rows.append(item)
            if len(rows) == self._shards.rows:
                yield number, rows
                rows = []
        if rows:
            yield rows[0].number // self._shards.rows, rows

    async def _shard(self, number: int, rows: list[Item]) -> None:
        results = await asyncio.gather(*(self._row(item) for item in rows))
        await asyncio.to_thread(self._shards.write, number, results)
        self._shards_open.release()
        for result in results:
            self._tally.add(result)
            self._new.add(result)
        seconds = time.perf_counter() - self._started
        self._progress(self._tally, self._new.rows / seconds, self._new.tokens / seconds)
        failed = sum(self._tally.failed.values())
        if self._tally.rows >= _FEW and failed > self._files.failed_frac * self._tally.rows:
            reason, count = self._tally.failed.most_common(1)[0]
            found = f"{failed} of {self._tally.rows} rows failed, more than files.failed_frac={self._files.failed_frac}"
            raise DataError(f"{found}; {count} times: {reason}; correct the rows, or raise files.failed_frac")

    async def _row(self, item: Item) -> Result:
        async with self._slots:
            try:
                return {"key": item.key, **await self._step.run(item)}
            except BadRow as error:
                return {"key": item.key, "error": str(error)}
