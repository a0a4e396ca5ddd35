"""Several rollout engines that act as one."""

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from minidist.cluster.roster import Roster, is_ready
from minidist.concurrency import merged, together
from minidist.errors import ActorLostError
from minidist.protocols import RolloutEngine
from minidist.types import Prompt, Rollout, Sampling, Weights

_PORTIONS = 4
"""Portions of a queue that an engine has in hand at one time."""


class Engines(RolloutEngine):
    """Engine i mod R answers prompt i of a call, R the number of engines; each engine gets its prompts at once and in order.

    Where a call has more sequences than the engines hold, they take prompts from one queue instead: an engine whose answers are
    short takes more of them, and no engine waits for the share of another.

    Prompts that an engine has not answered when it is lost are dealt to the others at once, or wait for it (`waits`).

    Args:
        members: the engines.
        held: sequences that an engine writes at one time. None: every engine gets its share at once, however large, so that
            the same engine answers the same prompt in every run.
        waits: of the `Roster`.
    """

    def __init__(self, members: Sequence[RolloutEngine], held: int | None = None, *, waits: bool = False) -> None:
        self.members = list(members)
        self._roster = Roster(self.members, waits=waits)
        self._held = held

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Rollouts in the prompts' order."""
        if not self._queues(prompts, sampling):
            return await self._roster.deal(prompts, lambda engine, part: engine.generate(part, sampling), each=sampling.samples)
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
        async with aclosing(self._dealt(self._roster.present(), prompts, range(len(prompts)), sampling)) as dealt:
            async for each in dealt:
                yield each

    async def _dealt(
        self, engines: Sequence[RolloutEngine], prompts: Sequence[Prompt], indices: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
        """As `stream`, of the prompts with these indices, dealt to these engines; others answer what a lost one has not."""

        shares = [list(indices[start :: len(engines)]) for start in range(len(engines))]
        takers = [self._answered(engine, prompts, share, sampling) for engine, share in zip(engines, shares, strict=True)]
        async with aclosing(merged(takers)) as answers:
            async for _, answered in answers:
                yield answered

    async def _answered(
        self, engine: RolloutEngine, prompts: Sequence[Prompt], share: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
        """As `stream`, of an engine's share of the prompts; others answer those that it has not when it is lost."""
        left = dict.fromkeys(share)
        try:
            async with aclosing(self._roster.asked(engine).stream([prompts[index] for index in share], sampling)) as answers:
                async for place, rollouts in answers:
                    del left[share[place]]
                    yield share[place], rollouts
        except ActorLostError as error:
            others = await self._roster.others(error)
            async with aclosing(self._dealt(others, prompts, list(left), sampling)) as answers:
                async for each in answers:
                    yield each

    def _queues(self, prompts: Sequence[Prompt], sampling: Sampling) -> bool:
        """Whether a call has so much work that the engines take it from a queue."""
        count = len(self._roster.present())
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
                async with aclosing(self._answered(engine, prompts, portion, sampling)) as answers:
                    async for each in answers:
                        yield each
                if not is_ready(engine):
                    return  # until the next call

        takers = [answer(engine) for _ in range(_PORTIONS) for engine in self._roster.present()]
        async with aclosing(merged(takers)) as answers:
            async for _, answered in answers:
                yield answered

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of every token after the first."""
        return await self._roster.deal(sequences, lambda engine, part: engine.score(part))

    async def load(self, weights: Weights | Path) -> None:
        """Load all engines; `weights` may be a reference into the object store."""
        self._roster.present()  # leaves out those that are given up
        await together(engine.load(weights) for engine in self.members)

    async def version(self) -> int:
        """Version of the weights that all engines hold."""
        return await self._roster.present()[0].version()

    async def figures(self) -> dict[str, float]:
        """The sums of the engines' figures."""
        figures = await together(engine.figures() for engine in self._roster.present())
        return {name: sum(each[name] for each in figures) for name in figures[0]}

    async def describe(self) -> dict[str, Any]:
        """The first engine, the number of engines, and the tokens of all."""
        described: list[dict[str, Any]] = await together(engine.describe() for engine in self._roster.present())
        tokens = sum(each.get("tokens_written", 0) for each in described)
        return described[0] | {"actors": len(described), "tokens_written": tokens}

    async def close(self) -> None:
        await together(engine.close() for engine in self.members)
