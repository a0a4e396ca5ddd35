"""Time that passes only while everyone waits, and roles that take a given number of its seconds."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np

from minidist.preflight.forecast.virtual import run as run
from minidist.types import Batch, Prompt, Rollout, Sampling, TeacherScores, Update, Weights
from tests.support.fakes import TableEngine, TableLearner, TableTeacher


class Log(list[tuple[str, float, float]]):
    """What was done from when to when; `broken` where a call failed or was cancelled."""

    async def spend(self, name: str, seconds: float, failure: Exception | None = None) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            await asyncio.sleep(seconds)
            if failure is not None:
                raise failure
        except BaseException:
            self.append((f"{name} broken", start, loop.time()))
            raise
        self.append((name, start, loop.time()))

    def spans(self, name: str) -> list[tuple[float, float]]:
        return [(start, end) for label, start, end in self if label == name]


class TimedEngine(TableEngine):
    """Writes the answers to each prompt in `seconds`, one prompt after another; `failing`: its call of that number raises."""

    def __init__(self, table: np.ndarray, log: Log, seconds: float, load: float = 0.0) -> None:
        super().__init__(table)
        self.log, self.seconds, self.load_seconds = log, seconds, load
        self.failing: int | None = None
        self.failure: Exception = RuntimeError("the engine died")

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        written = {index: rollouts async for index, rollouts in self.stream(prompts, sampling)}
        return [rollout for index in range(len(prompts)) for rollout in written[index]]

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[int, list[Rollout]]]:
        rollouts = await super().generate(prompts, sampling)
        fails = self.failing is not None and len(self.asked) == self.failing + 1
        for index in range(len(prompts)):
            await self.log.spend("write", self.seconds, self.failure if fails else None)
            yield index, rollouts[index * sampling.samples : (index + 1) * sampling.samples]

    async def load(self, weights: Weights) -> None:
        await self.log.spend("load", self.load_seconds)
        await super().load(weights)


class TimedTeacher(TableTeacher):
    """Scores an answer in `seconds`."""

    def __init__(self, table: np.ndarray, log: Log, seconds: float) -> None:
        super().__init__(table)
        self.log, self.seconds = log, seconds
        self.scored: list[list[tuple[int, int]]] = []
        self.failure: Exception | None = None

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        self.scored.append([(rollout.prompt.row, rollout.sample) for rollout in rollouts])
        await self.log.spend("score", self.seconds * len(rollouts), self.failure)
        return await super().score(rollouts)


class TimedLearner(TableLearner):
    """Takes an update in `seconds`."""

    def __init__(self, table: np.ndarray, log: Log, seconds: float) -> None:
        super().__init__(table)
        self.log, self.seconds = log, seconds
        self.failing: int | None = None

    async def update(self, batch: Batch) -> Update:
        failure = RuntimeError("the learner died") if self.failing == batch.step else None
        await self.log.spend("update", self.seconds, failure)
        return await super().update(batch)
