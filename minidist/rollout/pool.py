"""Several rollout engines that act as one."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from minidist.concurrency import deal, merged, together
from minidist.protocols import RolloutEngine
from minidist.types import Prompt, Rollout, Sampling, Weights


class Engines(RolloutEngine):
    """Engine i mod R answers prompt i of a call, R the number of engines; each engine gets its prompts at once and in order."""

    def __init__(self, members: Sequence[RolloutEngine]) -> None:
        self.members = list(members)

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Rollouts in the prompts' order."""
        return await deal(self.members, prompts, lambda engine, part: engine.generate(part, sampling), each=sampling.samples)

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
        """The rollouts of each prompt as soon as an engine has written them, with the prompt's index."""
        count = len(self.members)
        streams = [engine.stream(prompts[start::count], sampling) for start, engine in enumerate(self.members)]
        async with aclosing(merged(streams)) as answers:
            async for start, (index, rollouts) in answers:
                yield index * count + start, rollouts

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
