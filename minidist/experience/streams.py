"""Whose text each stream is on: the student's, the teacher's, gold answers, given text, or a mixture of writers."""

import zlib
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from minidist.config.distill import DistillConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.text import PrefixConfig
from minidist.data.rendering import Renderer
from minidist.data.sources import Example, gold_rollout
from minidist.experience.draw import Shuffled, collection_sampling, draw_writers
from minidist.methods.distillm import AdaptiveReplay
from minidist.protocols import Finished, RolloutEngine, Scorer, Text
from minidist.rollout.mixed.engine import LockstepEngine
from minidist.rollout.mixed.turns import TurnTakingEngine
from minidist.rollout.pool import Engines
from minidist.teachers.pool import Teachers
from minidist.teachers.routed import RoutedTeachers
from minidist.types import MAIN, Prompt, Rollout, Writer


@dataclass(frozen=True)
class Source:
    """One stream of every batch: its name, text and weight, and whether teacher actors score it."""

    name: str
    text: Text
    weight: float = 1.0
    scored: bool = True


@dataclass(frozen=True)
class StudentText(Text):
    """Samples of the student."""

    engine: RolloutEngine
    config: RolloutConfig
    seed: int

    async def draw(self, step: int, prompts: Sequence[Prompt], finished: Finished | None = None) -> list[Rollout]:
        sampling = collection_sampling(self.config, step, seed=self.seed)
        if finished is None:
            return await self.engine.generate(prompts, sampling)
        answers: dict[int, list[Rollout]] = {}
        async with aclosing(self.engine.stream(prompts, sampling)) as arriving:
            async for index, rollouts in arriving:
                answers[index] = rollouts
                finished(index, rollouts)
        return [rollout for index in range(len(prompts)) for rollout in answers[index]]

    async def figures(self) -> dict[str, float]:
        return await self.engine.figures()


@dataclass(frozen=True)
class TeacherText(Text):
    """Samples of the teacher."""

    teacher: Scorer
    config: RolloutConfig
    seed: int

    async def draw(self, step: int, prompts: Sequence[Prompt], finished: Finished | None = None) -> list[Rollout]:
        rollouts = await self.teacher.extend(prompts, collection_sampling(self.config, step, seed=self.seed))
        return [replace(rollout, writer=Writer.TEACHER) for rollout in rollouts]


@dataclass(frozen=True)
class GoldText(Text):
    """Gold answers, one for each prompt, cut at `max_new_tokens`."""

    max_new_tokens: int

    async def draw(self, step: int, prompts: Sequence[Prompt], finished: Finished | None = None) -> list[Rollout]:
        return [gold_rollout(prompt, self.max_new_tokens) for prompt in prompts]


@dataclass(frozen=True)
class GivenText(Text):
    """Examples that have nothing to do with the step's prompts: answers, or plain text."""

    examples: Shuffled[Example]
    rows_per_update: ClassVar[bool] = True

    async def draw(self, step: int, prompts: Sequence[Prompt], finished: Finished | None = None) -> list[Rollout]:
        return [example.as_rollout() for example in self.examples.at(step)]


@dataclass(frozen=True)
class MixedText(Text):
    """Answers of several writers, each to its share of the prompts. `texts` draw one after another, in their order."""

    texts: Mapping[Writer, Text]
    prefix: PrefixConfig
    seed: int

    async def draw(self, step: int, prompts: Sequence[Prompt], finished: Finished | None = None) -> list[Rollout]:
        writers = draw_writers(self.prefix, len(prompts), step=step, seed=self.seed)
        answers: dict[int, list[Rollout]] = {}
        for writer, text in self.texts.items():
            indices = [index for index, name in enumerate(writers) if name is writer]
            alone = finished if len(indices) == len(prompts) else None  # else its indices would be others
            rollouts = await text.draw(step, [prompts[index] for index in indices], alone) if indices else []
            samples = len(rollouts) // max(len(indices), 1)
            answers |= {index: rollouts[n * samples : (n + 1) * samples] for n, index in enumerate(indices)}
        return [rollout for index in range(len(prompts)) for rollout in answers[index]]

    async def figures(self) -> dict[str, float]:
        return {name: value for text in self.texts.values() for name, value in (await text.figures()).items()}


def make_sources(
    config: DistillConfig, examples: Mapping[str, Sequence[Example]], engine: RolloutEngine | None, teacher: Scorer | None
) -> list[Source]:
    """The main stream, then the streams that answer the step's prompts, then the streams with `examples` of their own.

    `engine` and `teacher` are None when the run samples nothing from them.
    """
    seed = config.run.seed
    texts: dict[Writer, Text] = {Writer.DATASET: GoldText(config.rollout.max_new_tokens)}
    if engine is not None:
        texts[Writer.STUDENT] = StudentText(engine, config.rollout, seed)
    if teacher is not None:
        texts[Writer.TEACHER] = TeacherText(teacher, config.rollout, seed)
    main: Text = MixedText(texts, config.prefix, seed)
    if config.prefix.replay is not None:
        main = AdaptiveReplay(config, texts[Writer.STUDENT], texts[Writer.DATASET])
    sources = [Source(MAIN, main, scored=config.main_scored)]
    for name, stream in sorted(config.streams.items(), key=lambda item: item[1].writer is None):
        if stream.writer is not None:
            text = texts[Writer(stream.writer)]
        else:
            # The seed depends on the name, so that two streams on equally many examples draw different rows.
            own_seed = seed ^ zlib.crc32(name.encode())
            text = GivenText(Shuffled(examples[name], stream.rows * config.objective.updates, own_seed))
        sources.append(Source(name, text, stream.weight, scored=stream.objective.needs is not None))
    return sources


def student_engine(
    config: DistillConfig, engines: Engines, teachers: Teachers | RoutedTeachers | None, renderer: Renderer
) -> RolloutEngine:
    """The engine of the student's text: the student alone, or with rollout.teacher_mix the mixture with the teacher."""
    alpha, students = config.teacher_mix, engines.members
    if not alpha:
        return engines
    if not config.takes_turns:
        return Engines([LockstepEngine(student, alpha) for student in students])
    assert teachers is not None, "an engine that takes turns needs teacher actors"
    count = len(teachers.members)
    sharing = -(-len(students) // count)
    pairs: list[tuple[Any, Any]] = [(student, teachers.members[index % count]) for index, student in enumerate(students)]
    at_once = config.cluster.apart("rollout", "teacher")
    return Engines([TurnTakingEngine(*pair, alpha, renderer, sharing=sharing, at_once=at_once) for pair in pairs])
