"""A distillation's configuration, and the collector that such a run has, with fakes for its roles."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from minidist.config import DistillConfig
from minidist.data.sources import Example
from minidist.experience.draw import Shuffled
from minidist.experience.scoring import Grouping
from minidist.experience.source import Collector
from minidist.experience.streams import make_sources
from minidist.methods import make_credit
from minidist.run.tracking import Clock
from minidist.types import Batch, Finish, Payload, Prompt, Rollout, Sampling, TeacherScores


def distill_config(**sections: Any) -> DistillConfig:
    """A valid configuration with these sections; nothing that it names exists."""
    tree: dict[str, Any] = {
        "stage": "distill",
        "run": {"directory": "run"},
        "student": {"model": "student"},
        "teacher": {"model": "teacher"},
        "data": {"prompts": {"path": "prompts.jsonl", "answer": "{{ answer }}"}},
        "objective": {"type": "reverse_kl"},
    }
    tree["run"] |= sections.pop("run", {})
    tree["data"] |= sections.pop("data", {})
    return DistillConfig.model_validate(tree | sections)


def make_collector(
    config: DistillConfig,
    prompts: Sequence[Prompt],
    engine: Any = None,
    teacher: Any = None,
    *,
    examples: Mapping[str, Sequence[Example]] | None = None,
    learner: Any = None,
    clock: Clock | None = None,
) -> Collector:
    """The collector of a run, as the stage makes it."""
    shuffled = Shuffled(prompts, config.rollout.prompts_per_step, config.run.seed)
    sources = make_sources(config, examples or {}, engine, teacher)
    credit, stale = make_credit(config, learner), config.loop.max_staleness > 0
    return Collector(shuffled, sources, teacher, credit, clock or Clock(), Grouping.of(config), stale)


def collect(config: DistillConfig, prompts: Sequence[Prompt], engine: Any, teacher: Any, step: int = 0, **rest: Any) -> Batch:
    """The collection of one step."""
    return asyncio.run(make_collector(config, prompts, engine, teacher, **rest).next(step))


def named_prompts(count: int = 12) -> list[Prompt]:
    """Prompts whose first token names them (1000 + row), with gold answers of one to five tokens."""
    gold = [np.arange(1 + row % 5, dtype=np.int32) for row in range(count)]
    return [Prompt(row, np.array([1000 + row, row % 7]), str(row), f"gold {row}", gold[row]) for row in range(count)]


class NamingTeacher:
    """Scores token t of a rollout with the first token of its prompt + t / 100; writes the answer [6, 6]."""

    def __init__(self) -> None:
        self.scored: list[list[Rollout]] = []
        self.asked: list[dict[str, Any]] = []

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        self.scored.append(list(rollouts))
        return [
            TeacherScores(Payload.SAMPLED, logprobs=rollout.prompt.tokens[0] + np.arange(len(rollout.tokens)) / 100)
            for rollout in rollouts
        ]

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        self.asked.append({"rows": [prompt.row for prompt in prompts], **asdict(sampling)})
        tokens, zeros = np.array([6, 6]), np.zeros(2)
        return [Rollout(prompt, tokens, zeros, zeros, Finish.STOP, sample) for prompt, sample in sampling.jobs(prompts)]
