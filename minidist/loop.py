"""The loop: collect, update, publish, repeat. It knows no algorithm; sources, objectives and learners do."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from minidist.protocols import ExperienceSource, Learner, RolloutEngine, WeightTransfer
from minidist.run.tracking import Clock
from minidist.types import Batch, Update


class Watch(Protocol):
    """What looks on: it may stop a run whose numbers are wrong, end it, and write down where it stands."""

    async def before_update(self, batch: Batch) -> None: ...

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        """True ends the run."""
        ...

    async def stopped(self, step: int) -> None:
        """The run is told to stop between two steps; `step` is the next one."""
        ...


@dataclass
class Run:
    """What the loop needs. `step` is the next step to take."""

    steps: int
    source: ExperienceSource
    learner: Learner
    engines: Sequence[RolloutEngine]
    transfer: WeightTransfer
    clock: Clock
    watch: Watch
    step: int = 0
    done: bool = False
    updating: bool = False
    """An update is under way: learner and engines may hold different weights."""


async def train(run: Run) -> int:
    """Strictly on-policy: nothing is written until the last update is published. Returns the steps taken.

    Cancelling it gives up a collection, but never an update half way: the watch is told of a run between two steps.
    """
    try:
        while run.step < run.steps and not run.done:
            batch = await run.source.next(run.step)
            with run.clock.span("check"):
                await run.watch.before_update(batch)
            await _whole(_learn(run, batch))
    except asyncio.CancelledError:
        if not run.updating:  # else it was cancelled twice: the learner is half way, and what it holds is no step's
            await run.watch.stopped(run.step)
        raise
    return run.step


async def _learn(run: Run, batch: Batch) -> None:
    """Update, publish, and look at what came of it."""
    run.updating = True
    with run.clock.span("update"):
        update = await run.learner.update(batch)
    with run.clock.span("publish"):
        difference = await run.transfer.publish(run.learner, run.engines) if run.engines else None
    metrics = batch.metrics | update.metrics | run.clock.take()
    if difference is not None:
        metrics["canary/sync_nats_max"] = difference
    run.step += 1
    run.done = await run.watch.after_step(run.step - 1, batch, update, metrics)
    run.updating = False


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Finish the work even when cancelled meanwhile, and only then be cancelled. A second time ends it at once."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
