"""What the stages over a data set share: their directory, and every missing row through a step."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial

from minidist.config.pipelines import PipelineSection
from minidist.pipelines.job import Job, Runner
from minidist.pipelines.local import run_in_process
from minidist.pipelines.rows import items
from minidist.pipelines.shards import Shards
from minidist.pipelines.steps import Step
from minidist.pipelines.tally import Tally
from minidist.pipelines.workers import Block, ShardWorker, missing, open_at_once
from minidist.run.directory import RunDirectory
from minidist.run.tracking import Recorder, log, start_log


def opened(directory: RunDirectory, config: PipelineSection, lines: Sequence[str]) -> Shards:
    """The shards of a run's directory, which keeps those that are whole; the plan is logged."""
    directory.share()
    start_log(directory.path)
    for line in lines:
        log.info("%s", line)
    shards = _shards(config)
    shards.clean()
    return shards


def left_over(shards: Shards, rows: int) -> int:
    """Number of shards that are not written yet."""
    left, written = -(-rows // shards.rows), len(shards.numbers())
    log.info("%d of %d files are written already", written, left)
    return left - written


async def through(config: PipelineSection, make: Callable[[], Step], shards: Shards, rows: int, workers: int) -> Tally:
    """Every missing row through the steps that `make` makes, on the cluster or in this process, with a progress bar."""
    shown = {"speed/rows_per_s": "rows/s", "speed/tokens_per_s": "tokens/s", "rows/failed": "failed"}
    with closing(Recorder(config.run.directory, range(rows), tensorboard=config.run.tensorboard, shown=shown)) as recorder:

        def progress(tally: Tally, rows_per_s: float, tokens_per_s: float) -> None:
            figures = {"speed/rows_per_s": rows_per_s, "speed/tokens_per_s": tokens_per_s}
            recorder.step(tally.rows - 1, figures | {"rows/failed": float(sum(tally.failed.values()))})

        try:
            return await Job(shards, config.files, progress).run(_runner(config, make, workers))
        except asyncio.CancelledError:
            log.info("stopped; the files written so far are kept, and the same command does the other rows")
            raise


def _runner(config: PipelineSection, make: Callable[[], Step], workers: int) -> Runner:
    worker = partial(_worker, config, make)
    at_once = open_at_once(config.files.rows_in_flight, config.files.shard_rows)
    if config.cluster.roles == "local":
        return partial(run_in_process, worker(), _blocks(config), at_once)
    from minidist.pipelines.ray_data import Work, run_on_ray

    work = Work(partial(_blocks, config), worker, config.files.workers or workers, at_once, config.run.directory)
    return partial(run_on_ray, work)


def _worker(config: PipelineSection, make: Callable[[], Step]) -> ShardWorker:
    return ShardWorker(make(), _shards(config), config.files.rows_in_flight)


def _blocks(config: PipelineSection) -> Iterator[Block]:
    return missing(items(config), _shards(config))


def _shards(config: PipelineSection) -> Shards:
    return Shards(config.run.directory, config.files.format, config.files.shard_rows)


def counted(shards: Shards) -> Tally:
    """The tally of shards that are all written."""
    tally = Tally()
    for number in shards.numbers():
        tally += Tally.of(shards.read(number))
    return tally
