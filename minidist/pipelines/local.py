"""A job in this process: several shards at one time on one event loop."""

import asyncio
from collections.abc import Iterable

from minidist.pipelines.job import Take
from minidist.pipelines.workers import Lot, ShardWorker


async def run_here(worker: ShardWorker, lots: Iterable[Lot], at_once: int, take: Take) -> None:
    """All lots through one worker, `at_once` at one time. The first failure cancels the others, and is raised as itself."""
    free = asyncio.Semaphore(at_once)

    async def through(lot: Lot) -> None:
        take(await worker.write(lot))
        free.release()

    try:
        async with asyncio.TaskGroup() as group:
            for lot in lots:
                await free.acquire()
                group.create_task(through(lot))
                await asyncio.sleep(0)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        await worker.close()
