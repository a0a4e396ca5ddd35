"""Several rollout engines behind the face of one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minidist.concurrency import deal, together
from minidist.protocols import RolloutEngine
from minidist.types import Prompt, Rollout, Weights


class Engines:
    """Prompt i of a call is always written by engine i modulo their number, each part whole and in order."""

    def __init__(self, members: Sequence[RolloutEngine]) -> None:
        self.members = list(members)

    async def generate(self, prompts: Sequence[Prompt], *, samples: int, **sampling: Any) -> list[Rollout]:
        """`samples` rollouts a prompt, in the prompts' order."""
        return await deal(
            self.members, prompts, lambda engine, part: engine.generate(part, samples=samples, **sampling), each=samples
        )

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of every token after the first."""
        return await deal(self.members, sequences, lambda engine, part: engine.score(part))

    async def load(self, weights: Weights | Path) -> None:
        """Into all of them; `weights` may be a reference to what lies in the object store."""
        await together(engine.load(weights) for engine in self.members)

    async def describe(self) -> dict[str, object]:
        """The first engine, how many they are, and the tokens of all."""
        described = await together(engine.describe() for engine in self.members)
        tokens = sum(int(str(each.get("tokens_written", 0))) for each in described)
        return described[0] | {"actors": len(described), "tokens_written": tokens}

    async def close(self) -> None:
        await together(engine.close() for engine in self.members)
