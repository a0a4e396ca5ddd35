"""Several rollout engines that act as one."""

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from minidist.concurrency import deal, merged, together
from minidist.protocols import RolloutEngine
from minidist.types import Prompt, Rollout, Sampling, Weights

_PORTIONS = 4
"""Portions of a queue that an engine has in hand at one time."""


class Engines(RolloutEngine):
    """Engine i mod R answers prompt i of a call, R the number of engines; each engine gets its prompts at once and in order.

    Where a call has more sequences than the engines hold, they take prompts from one queue instead: an engine whose answers are
    short takes more of them, and no engine waits for the share of another.

    Args:
        members: the engines.
        held: sequences that an engine writes at one time. None: every engine gets its share at once, however large, so that
            the same engine answers the same prompt in every run.
    """

    def __init__(self, members: Sequence[RolloutEngine], held: int | None = None) -> None:
        self.members = list(members)
        self._held = held

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Rollouts in the prompts' order."""
        if not self._queues(prompts, sampling):
            return await deal(
                self.members, prompts, lambda engine, part: engine.generate(part, sampling), each=sampling.samples
            )
        async with aclosing(self._queued(prompts, sampling)) as answers:
            found = {index: rollouts async for index, rollouts in answers}
        return [rollout for index in range(len(prompts)) for rollout in found[index]]

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
        """The rollouts of each prompt as soon as an engine has written them, with the prompt's index."""
        if self._queues(prompts, sampling):
            async with aclosing(self._queued(prompts, sampling)) as queued:
                async for each in queued:
                    yield each
            return
        count = len(self.members)
        streams = [engine.stream(prompts[start::count], sampling) for start, engine in enumerate(self.members)]
        async with aclosing(merged(streams)) as answers:
            async for start, (index, rollouts) in answers:
                yield index * count + start, rollouts

    def _queues(self, prompts: Sequence[Prompt], sampling: Sampling) -> bool:
        """Whether a call has so much work that the engines take it from a queue."""
        count = len(self.members)
        return self._held is not None and count > 1 and len(prompts) * sampling.samples > count * self._held

    async def _queued(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
        """As `stream`; an engine takes the next prompts when it has answered some, and has a fourth more in hand than it
        writes."""
        assert self._held is not None
        waiting = deque(range(len(prompts)))
        size = max(1, self._held * 5 // (4 * _PORTIONS * sampling.samples))

        async def answer(engine: RolloutEngine) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
            while waiting:
                portion = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                async with aclosing(engine.stream([prompts[index] for index in portion], sampling)) as answers:
                    async for place, rollouts in answers:
                        yield portion[place], rollouts

        takers = [answer(engine) for _ in range(_PORTIONS) for engine in self.members]
        async with aclosing(merged(takers)) as answers:
            async for _, answered in answers:
                yield answered

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of every token after the first."""
        return await deal(self.members, sequences, lambda engine, part: engine.score(part))

    async def load(self, weights: Weights | Path) -> None:
        """Load all engines; `weights` may be a reference into the object store."""
        await together(engine.load(weights) for engine in self.members)

    async def version(self) -> int:
        """Version of the weights that all engines hold."""
        return await self.members[0].version()

    async def figures(self) -> dict[str, float]:
        """The sums of the engines' figures."""
        figures = await together(engine.figures() for engine in self.members)
        return {name: sum(each[name] for each in figures) for name in figures[0]}

    async def describe(self) -> dict[str, Any]:
        """The first engine, the number of engines, and the tokens of all."""
        described: list[dict[str, Any]] = await together(engine.describe() for engine in self.members)
        tokens = sum(each.get("tokens_written", 0) for each in described)
        return described[0] | {"actors": len(described), "tokens_written": tokens}

    async def close(self) -> None:
        await together(engine.close() for engine in self.members)
