"""A job on Ray Data: a task reads the source, and actors on any node of the cluster write the shards.

Ray Data holds the reader back while its actors are busy, and places them. What passes through the driver are counts.
"""

import asyncio
import logging
import os
import pickle
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from minidist.cluster.machine import thread_environment
from minidist.errors import MinidistError, RoleError
from minidist.pipelines.job import Take, WorkerDiedError
from minidist.pipelines.tally import Tally
from minidist.pipelines.workers import Block, ShardWorker


@dataclass(frozen=True)
class Work:
    """What the processes of a job are made from; crosses Ray.

    Args:
        blocks: the missing shards with their rows, from the first on.
        worker: makes the worker of a process.
        workers: number of them.
        at_once: shards that are open at one time in each of them.
        folder: the run's directory, which every node sees at the same path.
    """

    blocks: Callable[[], Iterable[Block]]
    worker: Callable[[], ShardWorker]
    workers: int
    at_once: int
    folder: Path


async def run_on_ray(work: Work, take: Take) -> None:
    """All blocks through `work.workers` actors. Raises what fails in an actor as itself, and WorkerDiedError where one ends."""
    _quiet()
    directories = _Directories(str(Path.cwd()), str(work.folder.resolve()))
    read = ray.data.read_datasource(_Blocks(directories, work.blocks), override_num_blocks=1, num_cpus=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # max_restarts has no named parameter yet
        written = _written(read, directories, work)
    async with aclosing(_outcomes(written)) as outcomes:
        async for outcome in outcomes:
            if isinstance(outcome, MinidistError):
                raise outcome
            take(outcome)


def _written(read: ray.data.Dataset, directories: "_Directories", work: Work) -> ray.data.Dataset:
    """The counts of shards, as they are written."""
    strategy = ray.data.ActorPoolStrategy(
        size=work.workers, max_tasks_in_flight_per_actor=work.at_once, max_concurrent_calls_per_actor=work.at_once
    )
    return read.map_batches(
        _Writing,
        batch_size=1,
        fn_constructor_args=(directories, work.worker),
        compute=strategy,
        num_cpus=0,
        runtime_env={"env_vars": thread_environment(1)},
        max_restarts=0,  # Ray prints an error for every actor that it may start again; the job starts dead ones again itself
    )


def _quiet() -> None:
    """No logs and progress bars beside minidist's; a block of Ray Data is a shard, however small."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1


async def _outcomes(dataset: ray.data.Dataset) -> AsyncGenerator[Tally | MinidistError]:
    """What the actors return, as it comes. A thread waits for Ray Data; when the run ends before it, the thread is left behind
    and ends with the cluster."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
    ended = threading.Event()

    def put(found: Any) -> None:
        if not ended.is_set():
            loop.call_soon_threadsafe(queue.put_nowait, found)

    def wait() -> None:
        try:
            for row in dataset.iter_rows():
                put(pickle.loads(row["outcome"]))
                if ended.is_set():
                    return
            put(None)
        except Exception as error:  # noqa: BLE001 - once the run has ended, the cluster ends under this thread in many ways
            reason = str(error).strip().splitlines() or [type(error).__name__]
            put(WorkerDiedError(f"a worker of the pipeline died: {reason[-1]}"))

    threading.Thread(target=wait, daemon=True, name="ray-data").start()
    try:
        while (found := await queue.get()) is not None:
            yield found
    finally:
        ended.set()


@dataclass(frozen=True)
class _Directories:
    """The driver's working directory, from which the paths of a configuration are read, and the run's directory."""

    working: str
    run: str

    def enter(self) -> None:
        """Raises RoleError on a node that does not see the run's directory."""
        if not Path(self.run).is_dir():
            node = ray.util.get_node_ip_address()
            raise RoleError(f"the node {node} has no directory {self.run}; set run.directory to a path that all nodes share")
        if Path(self.working).is_dir():
            os.chdir(self.working)


class _Blocks(Datasource):
    """The missing shards, a block each, by one task that goes through the source once."""

    def __init__(self, directories: _Directories, blocks: Callable[[], Iterable[Block]]) -> None:
        self._directories = directories
        self._blocks = blocks

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        directories, blocks = self._directories, self._blocks

        def read() -> Iterator[pyarrow.Table]:
            try:
                directories.enter()
                for block in blocks():
                    yield pyarrow.table({"block": [pickle.dumps(block)]})
            except Exception as error:  # noqa: BLE001 - crosses Ray as a sentence, whatever it is
                yield pyarrow.table({"block": [pickle.dumps(_as_minidist_error(error, "the reader of the rows"))]})

        nothing_known = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(read, nothing_known)]


class _Writing:
    """An actor: writes shards, and returns their counts."""

    def __init__(self, directories: _Directories, make: Callable[[], ShardWorker]) -> None:
        self._directories = directories
        self._make = make
        self._worker: ShardWorker | None = None

    async def __call__(self, batch: dict[str, Any]) -> AsyncGenerator[dict[str, list[bytes]]]:
        for block in batch["block"]:
            yield {"outcome": [pickle.dumps(await self._outcome(pickle.loads(block)))]}

    async def _outcome(self, block: Block | MinidistError) -> Tally | MinidistError:
        if isinstance(block, MinidistError):
            return block
        try:
            if self._worker is None:
                self._directories.enter()
                self._worker = self._make()
            return await self._worker.write(block)
        except Exception as error:  # noqa: BLE001 - crosses Ray as a sentence, whatever it is
            return _as_minidist_error(error, "a worker of the pipeline")


def _as_minidist_error(error: Exception, where: str) -> MinidistError:
    """minidist's errors as themselves, all others as a RoleError that names where it was raised."""
    return error if isinstance(error, MinidistError) else RoleError(f"{where} failed: {type(error).__name__}: {error}")
