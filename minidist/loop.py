"""The loop: collect, update, publish, repeat. It knows no algorithm; sources, objectives and learners do."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from minidist.protocols import ExperienceSource, Learner, RolloutEngine, WeightTransfer
from minidist.tracking import Clock
from minidist.types import Batch, Update


@dataclass
class Run:
    """What the loop needs. `before_update` may stop a run whose numbers are wrong; `after_step` ends it when true."""

    steps: int
    source: ExperienceSource
    learner: Learner
    engines: Sequence[RolloutEngine]
    transfer: WeightTransfer
    clock: Clock
    before_update: Callable[[Batch], Awaitable[None]]
    after_step: Callable[[int, Batch, Update, dict[str, float]], Awaitable[bool]]


async def train(run: Run) -> int:
    """Strictly on-policy: nothing is written until the last update is published. Returns the steps taken."""
    for step in range(run.steps):
        batch = await run.source.next(step)
        with run.clock.span("check"):
            await run.before_update(batch)
        with run.clock.span("update"):
            update = await run.learner.update(batch)
        with run.clock.span("publish"):
            difference = await run.transfer.publish(run.learner, run.engines) if run.engines else None
        metrics = batch.metrics | update.metrics | run.clock.take()
        if difference is not None:
            metrics["canary/sync_nats_max"] = difference
        if await run.after_step(step, batch, update, metrics):
            return step + 1
    return run.steps
