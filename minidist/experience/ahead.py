"""Collections that are written ahead of the learner, with the weights published last."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from minidist.concurrency import beside
from minidist.data.kept import from_row, to_row
from minidist.experience.source import Collector, Draft
from minidist.protocols import ExperienceSource, Learner, RolloutEngine, WeightTransfer
from minidist.types import Batch


class WriteAhead(ExperienceSource, WeightTransfer):
    """A task of its own writes the text of up to `most` collections beyond the one that is scored and learned from.

    Weights are published between two collections: an engine never swaps them while it writes. So at `most` 1 collection t + 1
    is written with the weights of t updates, while the learner takes the next; a step takes max(write, score + update) +
    publish. Use it with `async with`, which ends the writing. A failure of the writing is raised by the call under way here, or
    by the next one, so that an update under way is finished.

    Args:
        collector: draws the text, and completes the collection.
        transfer: publishes the weights.
        most: collections that may be written ahead.
        steps: of the run; nothing is written for later ones.
        strict: collection t is always written with the weights of step t - most, whatever takes how long, so that runs repeat.
            Otherwise with the weights published last, which may be newer.
    """

    def __init__(self, collector: Collector, transfer: WeightTransfer, *, most: int, steps: int, strict: bool) -> None:
        self.writing = collector.writing
        self._collector = collector
        self._transfer = transfer
        self._most = most
        self._steps = steps
        self._strict = strict
        self._step = 0
        self._drafts: dict[int, Draft] = {}
        """What is written, and not learned from yet."""
        self._kept: dict[int, Draft] = {}
        """The main texts of a checkpoint's drafts, whose other texts are still to be drawn."""
        self._writer: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> "WriteAhead":
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)

    async def next(self, step: int) -> Batch:
        """The collection of step `step`; from now on, collections up to `step + most` may be written."""
        async with self._changed:
            self._step = step
            self._changed.notify_all()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(step))
        await beside(self._until(lambda: step in self._drafts), self._writer)
        return await beside(self._collector.complete(self._drafts[step]), self._writer)

    async def publish(self, learner: Learner, engines: Sequence[RolloutEngine]) -> float:
        """Publish the weights that step `step` of the last `next` gave, once no engine writes."""
        self._drafts.pop(self._step, None)
        if self._strict and self._writer is not None:
            last = min(self._step + self._most, self._steps - 1)
            await beside(self._until(lambda: last <= self._step or last in self._drafts), self._writer)
        async with self.writing:
            publishing = self._transfer.publish(learner, engines)
            return await (publishing if self._writer is None else beside(publishing, self._writer))

    def observe(self, evaluation: dict[str, float]) -> None:
        """Take note of the figures of an evaluation."""
        self._collector.observe(evaluation)

    def state_dict(self) -> dict[str, Any]:
        """The collector's state, and the main text of what is written and not learned from: it is of weights that a resumed run
        no longer has. Other texts of these collections are functions of seed, step and teacher."""
        drafts = self._kept | self._drafts
        rows = [[step, draft.figures, [to_row(rollout) for rollout in draft.main]] for step, draft in sorted(drafts.items())]
        return {"collector": self._collector.state_dict(), "written": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._collector.load_state_dict(state["collector"])
        by_row = {prompt.row: prompt for prompt in self._collector.prompts.items}
        for step, figures, rows in state["written"]:
            self._kept[step] = Draft(step, [[from_row(row, by_row) for row in rows]], figures)

    async def _write(self, first: int) -> None:
        for step in range(first, self._steps):
            await self._until(lambda step=step: step <= self._step + self._most)
            draft = await self._collector.draw(step, self._kept.get(step))
            async with self._changed:
                self._kept.pop(step, None)
                self._drafts[step] = draft
                self._changed.notify_all()

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(holds)
