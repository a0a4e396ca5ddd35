"""DistiLLM's adaptive replay: steps on new student answers, on replayed student answers, or on gold answers."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

import numpy as np

from minidist.config.distill import DistillConfig
from minidist.data.kept import from_row, to_row
from minidist.protocols import Finished, Text
from minidist.types import Prompt, Rollout


class Answers(Enum):
    """The answers that a step is on."""

    NEW = "sampled from the student"
    REPLAYED = "sampled from the student at an earlier step"
    GOLD = "of the data set"


class AdaptiveReplay(Text):
    """Student answers, new or replayed, and gold answers.

    A step is on student answers with probability `share`. They are sampled anew with the probability that the schedule gives,
    or while the buffer is not full; otherwise they are drawn from the buffer without replacement. `share` grows when the
    validation loss has risen. The text of a step depends on the seed, the step number, the share and the buffer alone, so a
    resumed run repeats it. Source: Ko et al., DistiLLM, arXiv:2402.03898, section 3.2, and the released code.

    Args:
        config: the distillation; `prefix.student` is the share of the first step.
        student: new answers of the student.
        gold: gold answers.
    """

    def __init__(self, config: DistillConfig, student: Text, gold: Text) -> None:
        assert config.prefix.replay is not None
        self.share = config.prefix.student
        self._config = config.prefix.replay
        self._run = config.run
        self._samples = config.rollout.samples_per_prompt
        self._student = student
        self._gold = gold
        self._highest: float | None = None
        self._buffer: deque[Rollout] = deque(maxlen=self._config.capacity)
        self._pending: tuple[int, list[Rollout]] = (0, [])

    async def draw(self, step: int, prompts: Sequence[Prompt], finished: Finished | None = None) -> list[Rollout]:
        """Answers to the step's prompts, or as many answers out of the buffer."""
        answers = self.decide(step)
        if answers is Answers.REPLAYED:
            return self.replay(len(prompts) * self._samples, step)
        if answers is Answers.GOLD:
            return await self._gold.draw(step, prompts)
        rollouts = await self._student.draw(step, prompts, finished)
        self.store(rollouts)
        return rollouts

    def decide(self, step: int) -> Answers:
        """The answers of step `step`. Puts the new answers of earlier steps into the buffer, and drops those of an abandoned
        attempt at this step."""
        if self._pending[0] < step:
            self._buffer.extend(self._pending[1])
        self._pending = (step, [])
        point, progress = float(np.random.default_rng([self._run.seed, step, 2]).random()), step / self._run.steps
        new = {"decreasing": 1 - progress, "constant": 0.5, "increasing": progress}[self._config.schedule]
        if point >= self.share:
            return Answers.GOLD
        filled = len(self._buffer) >= self._config.capacity
        return Answers.REPLAYED if filled and point >= self.share * new else Answers.NEW

    def store(self, rollouts: Sequence[Rollout]) -> None:
        """Keep the answers of this step for the buffer, without log-probabilities: those are of the student of this step."""
        self._pending = (self._pending[0], [replace(rollout, logprobs=None) for rollout in rollouts])

    def replay(self, count: int, step: int) -> list[Rollout]:
        """`count` different answers out of the buffer."""
        chosen = np.random.default_rng([self._run.seed, step, 3]).choice(len(self._buffer), count, replace=False)
        return [self._buffer[index] for index in chosen]

    def observe(self, evaluation: dict[str, float]) -> None:
        """Let the share grow when the loss on gold answers has risen by the tolerance since the share grew last."""
        loss = evaluation.get("gold_nats")
        if loss is None:
            return
        if self._highest is None:
            self._highest = loss
        elif loss >= self._highest + self._config.tolerance:
            self.share, self._highest = min(self.share + self._config.growth, 1.0), loss

    async def figures(self) -> dict[str, float]:
        replay = {"replay/share": self.share, "replay/kept": float(len(self._buffer))}
        return replay | await self._student.figures()

    def state_dict(self) -> dict[str, Any]:
        step, pending = self._pending
        kept, written = ([to_row(rollout) for rollout in rollouts] for rollouts in (self._buffer, pending))
        return {"share": self.share, "highest": self._highest, "kept": kept, "written": [step, written]}

    def load_state_dict(self, state: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Restore `state_dict()`; `prompts` are the prompts of the run, which the state refers to by row."""
        by_row, (step, pending) = {prompt.row: prompt for prompt in prompts}, state["written"]
        self.share, self._highest = state["share"], state["highest"]
        self._buffer.extend(from_row(row, by_row) for row in state["kept"])
        self._pending = (step, [from_row(row, by_row) for row in pending])
