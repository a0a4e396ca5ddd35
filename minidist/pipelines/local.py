"""A job in this process: several shards at one time on one event loop."""

import asyncio
from collections.abc import Iterable

from minidist.pipelines.job import Take
from minidist.pipelines.workers import Block, ShardWorker


async def run_in_process(worker: ShardWorker, blocks: Iterable[Block], at_once: int, take: Take) -> None:
    """All blocks through one worker, `at_once` at one time. The first failure cancels the others, and is raised as itself."""
    free = asyncio.Semaphore(at_once)

    async def through(block: Block) -> None:
        take(await worker.write(block))
        free.release()

    try:
        async with asyncio.TaskGroup() as group:
            for block in blocks:
                await free.acquire()
                group.create_task(through(block))
                await asyncio.sleep(0)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        await worker.close()
