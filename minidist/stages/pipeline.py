"""What the stages over a data set share: their directory, and every missing row through a step."""

import asyncio
from collections.abc import Sequence
from contextlib import closing

from minidist.config.pipelines import PipelineSection
from minidist.pipelines.job import Job, Tally
from minidist.pipelines.rows import items
from minidist.pipelines.shards import Shards
from minidist.pipelines.steps import Step
from minidist.run.directory import RunDirectory
from minidist.run.tracking import Recorder, log, start_log


def opened(directory: RunDirectory, config: PipelineSection, lines: Sequence[str]) -> Shards:
    """The shards of a run's directory, which keeps those that are whole; the plan is logged."""
    directory.share()
    start_log(directory.path)
    for line in lines:
        log.info("%s", line)
    return Shards(directory.path, config.files.format, config.files.shard_rows)


def missing(shards: Shards, rows: int) -> int:
    """Number of shards that are not written yet."""
    left, written = -(-rows // shards.rows), len(shards.numbers())
    log.info("%d of %d files are written already", written, left)
    return left - written


async def through(config: PipelineSection, step: Step, shards: Shards, rows: int) -> Tally:
    """Every missing row through the step, with a progress bar."""
    shown = {"speed/rows_per_s": "rows/s", "speed/tokens_per_s": "tokens/s", "rows/failed": "failed"}
    with closing(Recorder(config.run.directory, range(rows), tensorboard=config.run.tensorboard, shown=shown)) as recorder:

        def progress(tally: Tally, rows_per_s: float, tokens_per_s: float) -> None:
            figures = {"speed/rows_per_s": rows_per_s, "speed/tokens_per_s": tokens_per_s}
            recorder.step(tally.rows - 1, figures | {"rows/failed": float(sum(tally.failed.values()))})

        try:
            return await Job(step, shards, config.files, progress).run(items(config))
        except ExceptionGroup as failed:  # the first failure has cancelled the others
            raise failed.exceptions[0] from None
        except asyncio.CancelledError:
            log.info("stopped; the files written so far are kept, and the same command does the other rows")
            raise


def counted(shards: Shards) -> Tally:
    """The tally of shards that are all written."""
    tally = Tally()
    for number in shards.numbers():
        for result in shards.read(number):
            tally.add(result)
    return tally
