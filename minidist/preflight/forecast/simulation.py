"""The loop of a distillation in virtual time: its own code, with roles whose work takes the seconds of the formulas.

What runs is `loop.train`, `experience` (collections, scoring as answers finish, writing ahead), and the pools that deal rows to
engines, teachers and ranks. What is simulated are their members. So answers of different lengths, rows that cannot be dealt
evenly, and what waits for what cost here what they cost in a run.
"""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidist.config.rollout import RolloutConfig
from minidist.experience.ahead import WriteAhead
from minidist.experience.draw import Shuffled
from minidist.experience.scoring import GROUPS, Grouping
from minidist.experience.source import Collector
from minidist.experience.streams import Source, StudentText
from minidist.learners.ranks import LearnerRanks
from minidist.loop import Run, train
from minidist.preflight.forecast.scenario import Design, Scenario
from minidist.preflight.forecast.seconds import (
    engine_step,
    exchanging,
    learning,
    moving,
    optimizing,
    prefill,
    publishing,
    scoring,
)
from minidist.preflight.forecast.virtual import run as in_virtual_time
from minidist.rollout.pool import Engines
from minidist.run.flops import Work
from minidist.run.tracking import Clock
from minidist.teachers.pool import Teachers
from minidist.types import MAIN, Batch, Payload, Prompt, Rollout, Sampling, TeacherScores, Update

_STEPS = 4
_TOKENS = 64
"""Most simulated tokens of an answer of mean length: one stands for as many real ones as needed."""


@dataclass(frozen=True)
class Simulated:
    """What a simulated run took.

    step: seconds of a step, without the first, which waits for text, and the last, beside which none is written.
    busy: share of the devices' time in which they work: in all, and of each role's own devices.
    """

    step: float
    busy: float
    by_role: dict[str, float]


@dataclass(frozen=True)
class Spread:
    """How much answers differ in length: log-normal with this `sigma`, at most `longest` times the mean. 0: not at all."""

    sigma: float = 0.0
    longest: float = 4.0

    def tokens(self, mean: float, key: tuple[int, int, int]) -> int:
        """Tokens of the answer of this seed, row and sample."""
        if not self.sigma:
            return max(1, round(mean))
        drawn = np.random.default_rng(key).lognormal(-(self.sigma**2) / 2, self.sigma)
        return max(1, round(mean * min(float(drawn), self.longest)))


@dataclass
class Scene:
    """What simulated roles share. grain: real tokens of a simulated one. busy: device-seconds of work of each role."""

    scenario: Scenario
    spread: Spread
    grain: int
    busy: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def switch(self) -> float:
        """Seconds until a role has the devices that it shares."""
        return self.scenario.rates.overheads.switch if self.scenario.design is Design.COLOCATED else 0.0

    async def work(self, role: str, seconds: float, devices: int) -> None:
        """Work for so many seconds on so many devices."""
        await asyncio.sleep(seconds)
        self.busy[role] += seconds * devices

    def of_rows(self, lengths: Sequence[tuple[int, int]]) -> Work:
        """The work of rows of so many simulated tokens of prompt and answer."""
        rows = [(self.grain * (prompt + answer), self.grain * answer) for prompt, answer in lengths]
        return sum((Work.row(length, answer) for length, answer in rows), Work())


class SimulatedEngine:
    """Writes as many answers at one time as its cache holds; the next begins when one ends."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        written = {index: rollouts async for index, rollouts in self.stream(prompts, sampling)}
        return [rollout for index in range(len(prompts)) for rollout in written[index]]

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
        scene, scenario = self._scene, self._scene.scenario
        await scene.work("rollout", prefill(scenario, len(prompts)), scenario.layout.rollout_split)
        jobs = [(index, number) for index in range(len(prompts)) for number in range(sampling.samples)]
        mean = scenario.workload.answer / scene.grain
        lengths = {job: scene.spread.tokens(mean, (sampling.seed, prompts[job[0]].row, job[1])) for job in jobs}
        waiting, active, left = jobs[::-1], dict[tuple[int, int], int](), Counter(index for index, _ in jobs)
        while waiting or active:
            while waiting and len(active) < scenario.slots:
                active[waiting.pop()] = 0
            tokens = min(lengths[job] - done for job, done in active.items())
            await self._write(active, tokens)
            ended = [job for job in active if lengths[job] == active[job]]
            await asyncio.sleep(scenario.rates.overheads.decoded_token * scene.grain * sum(lengths[job] for job in ended))
            for job in ended:
                del active[job]
                left[job[0]] -= 1
            for index in dict.fromkeys(index for index, _ in ended if not left[index]):
                numbers = range(sampling.samples)
                yield index, [_answer(prompts[index], lengths[index, number], number) for number in numbers]

    async def _write(self, active: dict[tuple[int, int], int], tokens: int) -> None:
        """So many more tokens of each active answer, at their mean length meanwhile."""
        scene, scenario = self._scene, self._scene.scenario
        written = scene.grain * (sum(active.values()) / len(active) + tokens / 2)
        each = engine_step(scenario, len(active), scenario.workload.prompt + written)
        await scene.work("rollout", scene.grain * tokens * each, scenario.layout.rollout_split)
        for job in active:
            active[job] += tokens

    async def figures(self) -> dict[str, float]:
        return {}


class SimulatedTeacher:
    """Scores rows."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        scene, scenario = self._scene, self._scene.scenario
        work = scene.of_rows([(len(rollout.prompt.tokens), len(rollout.tokens)) for rollout in rollouts])
        seconds = scenario.rates.overheads.score_call + scoring(scenario, work)
        await scene.work("teacher", seconds if rollouts else 0.0, scenario.layout.teacher_split)
        return [TeacherScores(Payload.SAMPLED, logprobs=np.zeros(len(rollout.tokens))) for rollout in rollouts]

    async def describe(self) -> dict[str, object]:
        return {}


class SimulatedRank:
    """Trains on its rows."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def update(self, batch: Batch) -> Update:
        scene, scenario = self._scene, self._scene.scenario
        for streams in batch.steps:
            lengths = [(len(row.tokens) - len(row.labels), len(row.labels)) for stream in streams for row in stream.rows]
            work = scene.of_rows(lengths)
            filled = (scene.grain * sum(length) / scenario.layout.micro_batch for length in lengths)
            count = max(1.0, sum(min(1.0, share) for share in filled))  # a row longer than the budget is one of its own
            computing = learning(scenario, work) + math.ceil(count) * scenario.rates.overheads.micro_batch
            exchange = count * exchanging(scenario)
            await asyncio.sleep(max(0.0, exchange - computing) if scenario.paths.overlap else exchange)
            await scene.work("learner", computing, 1)
        await scene.work("learner", scenario.workload.updates * optimizing(scenario), 1)
        return Update(batch.step + 1, {})


class _Driver:
    """What the driver does beside the roles: it hands devices over, moves scores, counts text, and publishes."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        layout = scene.scenario.layout
        self.engine = Engines([SimulatedEngine(scene) for _ in range(layout.engines)])  # type: ignore[list-item]
        self.teachers = Teachers([SimulatedTeacher(scene) for _ in range(layout.teachers)])  # type: ignore[list-item]
        self.ranks = LearnerRanks([SimulatedRank(scene) for _ in range(layout.learner)])  # type: ignore[list-item]
        self.ended: list[float] = []

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """The teachers' scores, and their way to the learner."""
        await asyncio.sleep(self.scene.switch)
        scores = await self.teachers.score(rollouts)
        tokens = self.scene.grain * sum(len(rollout.tokens) for rollout in rollouts)
        await asyncio.sleep(moving(self.scene.scenario) * tokens / self.scene.scenario.workload.written)
        return scores

    async def update(self, batch: Batch) -> Update:
        await asyncio.sleep(self.scene.switch)
        return await self.ranks.update(batch)

    async def publish(self, learner: object, engines: object) -> float:
        await asyncio.sleep(publishing(self.scene.scenario) + self.scene.switch)
        return 0.0

    async def before_update(self, batch: Batch) -> None:
        costs, tokens = (
            self.scene.scenario.rates.overheads,
            self.scene.grain * sum(len(rollout.tokens) for rollout in batch.rollouts),
        )
        await asyncio.sleep(costs.step + costs.counted_token * tokens)

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        self.ended.append(asyncio.get_running_loop().time())
        return False

    async def stopped(self, step: int) -> None:
        """A simulation is not cancelled."""


def simulate(scenario: Scenario, spread: Spread = Spread(), *, steps: int = _STEPS) -> Simulated:
    """Run `steps` steps of the loop in virtual time.

    With answers of one length, and as many as engines, teachers and ranks share evenly, a step takes `seconds.step_seconds`.

    Args:
        scenario: roles, costs and design.
        spread: of the answers' lengths.
        steps: at least 3.
    """
    grain = _grain(scenario)
    driver = _Driver(Scene(scenario, spread, grain))
    in_virtual_time(_train(driver, steps))
    ended = driver.ended
    step = (ended[-2] - ended[0]) / (steps - 2)
    layout, busy = scenario.layout, driver.scene.busy
    devices = {"rollout": layout.rollout, "teacher": layout.teacher if scenario.teacher else 0, "learner": layout.learner}
    by_role = {role: busy[role] / steps / step / count for role, count in devices.items() if count}
    return Simulated(step, sum(busy.values()) / steps / step / scenario.devices, by_role)


async def _train(driver: _Driver, steps: int) -> None:
    scenario, design = driver.scene.scenario, driver.scene.scenario.design
    workload, loop = scenario.workload, asyncio.get_running_loop()
    rollout = RolloutConfig(
        prompts_per_step=workload.prompts, samples_per_prompt=workload.samples, max_new_tokens=max(1, round(workload.answer))
    )
    length = max(1, round(workload.prompt / driver.scene.grain))
    prompts = [Prompt(row, np.full(length, row, dtype=np.int32), "") for row in range(workload.prompts)]
    text, clock = StudentText(driver.engine, rollout, seed=0), Clock(loop.time)
    size = math.ceil(workload.prompts / GROUPS)
    teacher: Any = driver if scenario.teacher else None
    collector = Collector(
        Shuffled(prompts, workload.prompts, 0),
        [Source(MAIN, text, scored=teacher is not None)],
        teacher,
        None,
        clock,
        Grouping(size, workload.samples, stream=design is Design.STREAMED and teacher is not None),
    )
    transfer: Any = driver
    ahead = WriteAhead(collector, transfer, most=1, steps=steps, strict=False) if design is Design.STALE else None
    async with ahead or nullcontext():
        engines = driver.engine.members
        await train(Run(steps, ahead or collector, driver, clock, driver, engines, ahead or transfer))


def _grain(scenario: Scenario) -> int:
    """Real tokens of a simulated one: of answers and prompts a whole number, where both have common divisors."""
    prompt, answer = round(scenario.workload.prompt), round(scenario.workload.answer)
    common = [size for size in range(1, min(prompt, answer) + 1) if prompt % size == 0 and answer % size == 0]
    return next((size for size in common if answer / size <= _TOKENS), common[-1])


def _answer(prompt: Prompt, tokens: int, number: int) -> Rollout:
    return Rollout.written(prompt, np.arange(tokens), None, version=0, stopped=True, sample=number)
