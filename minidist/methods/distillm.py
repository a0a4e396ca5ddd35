"""DistiLLM's replay: when the student writes anew, when older answers of its own serve again, and when gold ones do."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

import numpy as np

from minidist.config.text import ReplayConfig
from minidist.types import Finish, Prompt, Rollout


class Text(StrEnum):
    """Whose text a step is on."""

    FRESH = "fresh"
    KEPT = "kept"
    GIVEN = "given"


class Replay:
    """The student's share of the steps, `share`, and a buffer of its answers, the oldest of which leaves first.

    A step is on the student's text with probability `share`: written anew with the share that the schedule allows, or while
    the buffer is not full; else drawn from the buffer without replacement. `share` grows when the validation loss has risen.
    What a step does is a function of the seed, the step, the share and the buffer, so a resumed run does the same.
    Source: Ko et al., DistiLLM, arXiv:2402.03898, section 3.2, and its code.
    """

    def __init__(self, config: ReplayConfig, *, share: float, steps: int, seed: int) -> None:
        self._config, self._steps, self._seed = config, steps, seed
        self.share = share
        self._highest: float | None = None
        self._buffer: deque[Rollout] = deque(maxlen=config.capacity)
        self._written: tuple[int, list[Rollout]] = (0, [])

    def decide(self, step: int) -> Text:
        """Whose text step `step` is on. What an earlier step wrote is kept now; a step that was given up wrote nothing."""
        if self._written[0] < step:
            self._buffer.extend(self._written[1])
        self._written = (step, [])
        point, progress = float(np.random.default_rng([self._seed, step, 2]).random()), step / self._steps
        anew = {"decreasing": 1 - progress, "constant": 0.5, "increasing": progress}[self._config.schedule]
        if point >= self.share:
            return Text.GIVEN
        return Text.FRESH if point < self.share * anew or len(self._buffer) < self._config.capacity else Text.KEPT

    def keep(self, rollouts: Sequence[Rollout]) -> None:
        """This step's answers, for the buffer. Their log-probabilities are of a student that is gone when they come out."""
        self._written = (self._written[0], [replace(rollout, logprobs=None) for rollout in rollouts])

    def draw(self, count: int, step: int) -> list[Rollout]:
        """`count` answers of the buffer, none twice."""
        chosen = np.random.default_rng([self._seed, step, 3]).choice(len(self._buffer), count, replace=False)
        return [self._buffer[index] for index in chosen]

    def observe(self, loss: float) -> None:
        """A validation loss: when it has risen beyond the tolerance, the student's share grows."""
        if self._highest is None:
            self._highest = loss
        elif loss >= self._highest + self._config.tolerance:
            self.share, self._highest = min(self.share + self._config.growth, 1.0), loss

    def figures(self) -> dict[str, float]:
        return {"replay/share": self.share, "replay/kept": float(len(self._buffer))}

    def state_dict(self) -> dict[str, Any]:
        kept, (step, written) = [_row(each) for each in self._buffer], self._written
        return {
            "share": self.share,
            "highest": self._highest,
            "kept": kept,
            "written": [step, [_row(each) for each in written]],
        }

    def load_state_dict(self, state: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """`prompts` are those of the run, by their rows."""
        self.share, self._highest = state["share"], state["highest"]
        asked, (step, written) = {prompt.row: prompt for prompt in prompts}, state["written"]
        self._buffer.extend(_rollout(row, asked) for row in state["kept"])
        self._written = (step, [_rollout(row, asked) for row in written])


def _row(rollout: Rollout) -> list[Any]:
    arrays = (rollout.tokens.tolist(), rollout.versions.tolist())
    return [rollout.prompt.row, *arrays, rollout.finish, rollout.sample, rollout.text]


def _rollout(row: list[Any], asked: Mapping[int, Prompt]) -> Rollout:
    prompt, tokens, versions, finish, sample, text = row
    arrays = [np.array(values, dtype=np.int32) for values in (tokens, versions)]
    return Rollout(asked[prompt], arrays[0], None, arrays[1], Finish(finish), sample, text)
