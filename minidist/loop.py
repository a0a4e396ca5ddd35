"""The loop: collect, update, publish, repeat. Algorithms live in sources, objectives and learners."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from minidist.concurrency import whole
from minidist.protocols import Learner, RolloutEngine, WeightTransfer
from minidist.run.tracking import Clock
from minidist.types import Batch, Exercise, Update

B = TypeVar("B", Batch, Exercise)
B_in = TypeVar("B_in", bound=Batch | Exercise, contravariant=True)
B_out = TypeVar("B_out", bound=Batch | Exercise, covariant=True)


class Source(Protocol[B_out]):
    """Where the loop's batches, or exercises, come from."""

    async def next(self, step: int) -> B_out: ...


class Learns(Protocol[B_in]):
    """What takes the optimizer steps of a batch, or of an exercise."""

    async def update(self, batch: B_in, /) -> Update: ...


class Watch(Protocol[B_in]):
    """Observes a run: it may refuse a batch, end the run, and write its checkpoints."""

    async def before_update(self, batch: B_in) -> None: ...

    async def after_step(self, step: int, batch: B_in, update: Update, metrics: dict[str, float]) -> bool:
        """True ends the run."""
        ...

    async def stopped(self, step: int) -> None:
        """The run was cancelled between two steps; `step` is the next step."""


@dataclass
class Run(Generic[B]):
    """The parts of the loop. `step` is the next step to take; without `transfer` no engine follows the learner."""

    steps: int
    source: Source[B]
    learner: Learns[B]
    clock: Clock
    watch: Watch[B]
    engines: Sequence[RolloutEngine] = ()
    transfer: WeightTransfer | None = None
    step: int = 0
    done: bool = False
    updating: bool = False
    """An update is under way: learner and engines may hold different weights."""


async def train(run: Run[Any]) -> int:
    """Take the run's steps, one after another; returns their number. A source may write the text of later steps meanwhile.

    Cancelling gives up a collection, but never half an update: the watch is called between two steps.
    """
    try:
        while run.step < run.steps and not run.done:
            began = run.clock.now()
            batch = await run.source.next(run.step)
            with run.clock.span("check"):
                await run.watch.before_update(batch)
            await whole(_learn(run, batch, began))
    except asyncio.CancelledError:
        if not run.updating:  # else cancelled twice: the learner holds the weights of no step
            await run.watch.stopped(run.step)
        raise
    return run.step


async def _learn(run: Run[Any], batch: Batch | Exercise, began: float) -> None:
    """Update, publish, and hand the figures of the step, which `began` at that second, to the watch."""
    run.updating = True
    with run.clock.span("update"):
        update = await run.learner.update(batch)
    with run.clock.span("publish"):
        difference = (
            await run.transfer.publish(cast(Learner, run.learner), run.engines) if run.transfer and run.engines else None
        )
    metrics = batch.metrics | update.metrics | run.clock.take()
    metrics["speed/seconds_per_step"] = run.clock.now() - began
    if difference is not None:
        metrics["canary/sync_nats_max"] = difference
    run.step += 1
    run.done = await run.watch.after_step(run.step - 1, batch, update, metrics)
    run.updating = False
