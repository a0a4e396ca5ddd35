"""The loop: collect, update, publish, repeat. Algorithms live in sources, objectives and learners."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from minidist.concurrency import whole
from minidist.protocols import ExperienceSource, Learner, RolloutEngine, WeightTransfer
from minidist.run.tracking import Clock
from minidist.types import Batch, Update


class Watch(Protocol):
    """Observes a run: it may refuse a batch, end the run, and write its checkpoints."""

    async def before_update(self, batch: Batch) -> None: ...

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        """True ends the run."""
        ...

    async def stopped(self, step: int) -> None:
        """The run was cancelled between two steps; `step` is the next step."""


@dataclass
class Run:
    """The parts of the loop. `step` is the next step to take; without `transfer` no engine follows the learner."""

    steps: int
    source: ExperienceSource
    learner: Learner
    clock: Clock
    watch: Watch
    engines: Sequence[RolloutEngine] = ()
    transfer: WeightTransfer | None = None
    step: int = 0
    done: bool = False
    updating: bool = False
    """An update is under way: learner and engines may hold different weights."""


async def train(run: Run) -> int:
    """Strictly on-policy: no text is written before the last update is published. Returns the number of steps taken.

    Cancelling gives up a collection, but never half an update: the watch is called between two steps.
    """
    try:
        while run.step < run.steps and not run.done:
            batch = await run.source.next(run.step)
            with run.clock.span("check"):
                await run.watch.before_update(batch)
            await whole(_learn(run, batch))
    except asyncio.CancelledError:
        if not run.updating:  # else cancelled twice: the learner holds the weights of no step
            await run.watch.stopped(run.step)
        raise
    return run.step


async def _learn(run: Run, batch: Batch) -> None:
    """Update, publish, and hand the figures to the watch."""
    run.updating = True
    with run.clock.span("update"):
        update = await run.learner.update(batch)
    with run.clock.span("publish"):
        difference = await run.transfer.publish(run.learner, run.engines) if run.transfer and run.engines else None
    metrics = batch.metrics | update.metrics | run.clock.take()
    if difference is not None:
        metrics["canary/sync_nats_max"] = difference
    run.step += 1
    run.done = await run.watch.after_step(run.step - 1, batch, update, metrics)
    run.updating = False
