"""A job: every row once and in order, few rows at one time, failures counted, and shards that are never touched again."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minidist.config.pipelines import FilesConfig
from minidist.data.templates import BadRow
from minidist.errors import DataError, RoleError
from minidist.pipelines.job import Job, Take, WorkerDiedError
from minidist.pipelines.local import run_in_process
from minidist.pipelines.shards import Shards
from minidist.pipelines.steps import Item
from minidist.pipelines.tally import Tally
from minidist.pipelines.workers import ShardWorker, missing, open_at_once


class Doubling:
    """Doubles a number after a moment; remembers how many rows were under way at one time. Fails on the rows in `bad`."""

    def __init__(self, bad: frozenset[int] = frozenset(), dies_at: int | None = None) -> None:
        self.bad, self.dies_at = bad, dies_at
        self.running = self.most = self.calls = 0

    async def run(self, item: Item) -> dict[str, Any]:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001 * (item.number % 3))
        self.running -= 1
        if item.number == self.dies_at:
            raise RoleError("the rollout died")
        if item.number in self.bad:
            raise BadRow("too long")
        return {"doubled": 2 * item.number, "tokens": 1}

    async def close(self) -> None:
        self.closed = True


def items(count: int, read: list[int] | None = None) -> Iterator[Item]:
    for number in range(count):
        if read is not None:
            read.append(number)
        yield Item(number, str(number), {})


def run(folder: Path, step: Doubling, count: int, read: list[int] | None = None, **options: Any) -> Tally:
    files = FilesConfig(**{"shard_rows": 10, "rows_in_flight": 8, **options})
    shards = Shards(folder, "jsonl", files.shard_rows)
    worker = ShardWorker(step, shards, files.rows_in_flight)
    blocks = missing(items(count, read), shards)
    at_once = open_at_once(files.rows_in_flight, files.shard_rows)
    job = Job(shards, files, lambda *figures: None)
    return asyncio.run(job.run(partial(run_in_process, worker, blocks, at_once)))


def written(folder: Path) -> list[dict[str, Any]]:
    shards = Shards(folder, "jsonl", 10)
    return [result for number in shards.numbers() for result in shards.read(number)]


def test_every_row_is_there_once_and_in_order(tmp_path: Path) -> None:
    tally = run(tmp_path, Doubling(), 37)
    assert written(tmp_path) == [{"key": str(n), "doubled": 2 * n, "tokens": 1} for n in range(37)]
    assert tally.summary() == {"rows": 37, "rows_failed": 0, "tokens": 37}
    assert [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob("rows/*"))] == [10, 10, 10, 7]


def test_few_rows_are_under_way_and_few_are_read_ahead(tmp_path: Path) -> None:
    step, read = Doubling(), list[int]()
    ahead = 0

    class Watched(Doubling):
        async def run(self, item: Item) -> dict[str, Any]:
            nonlocal ahead
            ahead = max(ahead, len(read) - self.calls)
            return await super().run(item)

    step = Watched()
    run(tmp_path, step, 500, read)
    assert step.most == 8 and ahead <= 30


def test_a_job_goes_on_where_it_was_and_touches_no_shard(tmp_path: Path) -> None:
    dying = Doubling(dies_at=25)
    with pytest.raises(RoleError, match="the rollout died"):
        run(tmp_path, dying, 60)
    assert dying.closed
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("rows/*")}
    assert 0 < len(before) < 6
    step = Doubling()
    run(tmp_path, step, 60)
    assert step.calls == 60 - 10 * len(before)
    assert all((path.stat().st_mtime_ns, path.read_bytes()) == kept for path, kept in before.items())
    assert [row["doubled"] for row in written(tmp_path)] == list(range(0, 120, 2))


def test_a_job_is_tried_three_times_while_its_workers_die(tmp_path: Path) -> None:
    shards, left = Shards(tmp_path, "jsonl", 10), iter((True, True, False))

    async def dying(take: Take) -> None:
        """Writes one shard a time, and says so only of the last: the others are counted from their files."""
        number = len(shards.numbers())
        shards.write(number, [{"key": str(number), "tokens": 1}])
        if next(left):
            raise WorkerDiedError("killed")
        take(Tally.of(shards.read(number)))

    job = Job(shards, FilesConfig(), lambda *figures: None)
    assert asyncio.run(job.run(dying)).summary() == {"rows": 3, "rows_failed": 0, "tokens": 3}
    left = iter((True, True, True))
    with pytest.raises(WorkerDiedError, match="killed"):
        asyncio.run(job.run(dying))


def test_failed_rows_are_written_with_the_reason_and_counted(tmp_path: Path) -> None:
    tally = run(tmp_path, Doubling(frozenset({3})), 100)
    assert [row["key"] for row in written(tmp_path)[:10]] == [*"012456789", "3"]
    assert written(tmp_path)[9] == {"key": "3", "error": "too long"}
    assert tally.summary() == {"rows": 100, "rows_failed": 1, "tokens": 99, "reasons": {"too long": 1}}


def test_too_many_failed_rows_stop_the_job(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows failed, more than files.failed_frac=0.05; .* too long"):
        run(tmp_path, Doubling(frozenset(range(0, 2000, 2))), 2000)
    assert len(written(tmp_path)) < 200


def test_the_accuracy_of_what_is_kept_is_that_of_the_kept_rows() -> None:
    tally = Tally()
    results = [(True, True), (True, False), (False, True), (False, False), (True, True)]
    for kept, right in results:
        tally.add({"key": "0", "kept": kept, "right": right, "tokens": 4, "answer_tokens": 2, "truncated": 0})
    found = tally.summary()
    assert (found["rows_kept"], found["accept_frac"]) == (3, 0.6)
    assert (found["accuracy"], found["accuracy_kept"]) == (0.6, pytest.approx(2 / 3))
    assert (found["tokens"], found["answer_tokens_mean"]) == (20, 2)


def test_graded_answers_without_a_filter_give_an_accuracy_alone() -> None:
    tally = Tally()
    for right in ([True, False], [True, True], False):
        tally.add({"key": "0", "right": right, "tokens": 1})
    assert tally.summary() == {"rows": 3, "rows_failed": 0, "tokens": 3, "accuracy": 0.6}
