"""Rollout engines whose text comes from a mixture of student and teacher; all but the text is the student's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minidist.types import Prompt, Rollout, Sampling, Weights


class MixedEngine:
    """A student's rollout engine with a share `alpha` of the teacher's tokens; subclasses write the text."""

    def __init__(self, student: Any, alpha: float) -> None:
        self._student = student
        self._alpha = alpha

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """The student's log-probabilities of every token after the first."""
        return await self._student.score(sequences)

    async def load(self, weights: Weights | Path) -> None:
        """Load the student's weights."""
        await self._student.load(weights)

    async def version(self) -> int:
        """Version of the student's weights."""
        return await self._student.version()

    async def figures(self) -> dict[str, float]:
        return {}

    async def describe(self) -> dict[str, object]:
        """The student's engine, and the teacher's share."""
        return {**await self._student.describe(), "teacher_mix": self._alpha}

    async def close(self) -> None:
        await self._student.close()


class LockstepEngine(MixedEngine):
    """Both models run at every token, in the `rollout.mixed.lockstep.HFPairEngine` that `student` is."""

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """`sampling.samples` rollouts a prompt, in order, with their coins."""
        if self._alpha == 0:
            return await self._student.generate(prompts, sampling)
        return await self._student.mix(prompts, self._alpha, sampling)
