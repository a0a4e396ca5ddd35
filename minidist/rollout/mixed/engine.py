"""Rollout engines whose text comes from a mixture of student and teacher; all but the text is the student's."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from minidist.protocols import RolloutEngine
from minidist.rollout.pool import Engines
from minidist.types import Prompt, Rollout, Sampling


class MixedEngine(Engines):
    """A student's rollout engine with a share `alpha` of the teacher's tokens; subclasses write the text."""

    def __init__(self, student: Any, alpha: float) -> None:
        super().__init__([student])
        self._student = student
        self._alpha = alpha

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
        """All rollouts when the last one ends."""
        return RolloutEngine.stream(self, prompts, sampling)

    async def describe(self) -> dict[str, Any]:
        """The student's engine, and the teacher's share."""
        return await super().describe() | {"teacher_mix": self._alpha}


class LockstepEngine(MixedEngine):
    """Both models run at every token, in the `rollout.mixed.lockstep.HFPairEngine` that `student` is."""

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """`sampling.samples` rollouts a prompt, in order, with their coins."""
        if self._alpha == 0:
            return await self._student.generate(prompts, sampling)
        return await self._student.mix(prompts, self._alpha, sampling)
