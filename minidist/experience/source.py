"""Where batches come from: text of student, teacher or data set, scored, with given text beside it; or given text alone."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from minidist.config.rollout import RolloutConfig
from minidist.config.text import PrefixConfig
from minidist.data.batching import as_rollout, collate, collate_examples, in_minibatches, in_turn
from minidist.data.sources import Example
from minidist.evaluation.text import describe_text
from minidist.methods.credit import Policy, Ranks
from minidist.methods.distillm import Replay, Text
from minidist.protocols import RolloutEngine, Teacher
from minidist.run.tracking import Clock
from minidist.types import MAIN, Array, Batch, Finish, Prompt, Rollout, Sampling, TeacherScores, Writer


def drawn(count: int, size: int, *, step: int, seed: int) -> list[int]:
    """Indices of the `size` rows of step `step`: one shuffled pass over `count` rows after another.

    A function of its arguments alone: nothing else need be kept to go on from any step.
    """
    indices: list[int] = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, count)
        indices.append(int(_order(count, seed, epoch)[place]))
    return indices


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Array:
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True)
class Beside:
    """Given text that is trained on beside the main stream: `rows` examples a step, with a weight of their own."""

    name: str
    examples: Sequence[Example]
    rows: int
    weight: float
    scored: bool
    """Whether its objective asks the teacher."""

    def draw(self, step: int, seed: int, updates: int = 1) -> list[Example]:
        """The rows of all the step's updates; with a seed of the stream's own, so that two sources of equal length are not
        drawn alike."""
        own = seed ^ zlib.crc32(self.name.encode())
        return [self.examples[index] for index in drawn(len(self.examples), self.rows * updates, step=step, seed=own)]


@dataclass(frozen=True)
class Written:
    """Answers to the step's own prompts by another writer, trained on beside the main stream."""

    name: str
    writer: Writer
    weight: float
    scored: bool


class Prefixes:
    """Text on the next prompts, written by student, teacher or data set as the shares say, and scored by the teacher.

    `engine` and `teacher` may be None where nobody writes or scores with them. `policy` credits the text where its objective
    is a policy gradient, and says on how many optimizer steps it is learned from.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        engine: RolloutEngine | None,
        teacher: Teacher | None,
        config: RolloutConfig,
        prefix: PrefixConfig,
        *,
        scored: bool,
        beside: Sequence[Beside] = (),
        written: Sequence[Written] = (),
        replay: Replay | None = None,
        policy: Policy | Ranks | None = None,
        seed: int,
        clock: Clock,
    ) -> None:
        self._prompts, self._engine, self._teacher = prompts, engine, teacher
        self._config, self._prefix, self._scored, self._beside = config, prefix, scored, beside
        self._written, self._replay = written, replay
        self._policy, self._seed, self._clock = policy, seed, clock

    async def next(self, step: int) -> Batch:
        """One collection."""
        indices = drawn(len(self._prompts), self._config.prompts_per_step, step=step, seed=self._seed)
        chosen = [self._prompts[index] for index in indices]
        with self._clock.span("generate"):
            rollouts = await self._main_text(chosen, step)
            taken = [(stream, await self._write(chosen, [stream.writer] * len(chosen), step)) for stream in self._written]
        given = [(stream, stream.draw(step, self._seed, self._updates)) for stream in self._beside]
        texts = [rollouts if self._scored else []]
        texts += [answers for stream, answers in taken if stream.scored]
        texts += [[as_rollout(example) for example in examples] for stream, examples in given if stream.scored]
        with self._clock.span("score"):
            said = iter(await self._score(texts))
        own = next(said)
        streams = [collate(MAIN, rollouts, own if self._scored else None, objective=MAIN)]
        for stream, answers in taken:
            scored = next(said) if stream.scored else None
            streams.append(collate(stream.name, answers, scored, objective=stream.name, weight=stream.weight))
        for stream, examples in given:
            scored = next(said) if stream.scored else None
            streams.append(collate_examples(stream.name, examples, scored, objective=stream.name, weight=stream.weight))
        figures = {f"rollout/{name}": value for name, value in describe_text(rollouts).items()}
        if self._replay is not None:
            figures |= self._replay.figures()
        if self._engine is not None:
            figures |= await self._engine.figures()
        batch = Batch(step, (tuple(streams),), tuple(rollouts), figures, main=streams[0])
        return batch if self._policy is None else await self._credited(batch, self._policy)

    def observe(self, evaluation: dict[str, float]) -> None:
        """What the last evaluation found."""
        if self._replay is not None and "gold_nats" in evaluation:
            self._replay.observe(evaluation["gold_nats"])

    def state_dict(self) -> dict[str, Any]:
        """What was kept for replay; every other draw is a function of the seed and the step."""
        return {} if self._replay is None else self._replay.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._replay is not None:
            self._replay.load_state_dict(state, self._prompts)

    async def _main_text(self, prompts: Sequence[Prompt], step: int) -> list[Rollout]:
        """The text of the main stream: as the shares say, or as replay decides."""
        if self._replay is None:
            return await self._write(prompts, writers(self._prefix, len(prompts), step=step, seed=self._seed), step)
        text = self._replay.decide(step)
        if text is Text.KEPT:
            return self._replay.draw(len(prompts) * self._config.samples_per_prompt, step)
        by = Writer.STUDENT if text is Text.FRESH else Writer.DATASET
        rollouts = await self._write(prompts, [by] * len(prompts), step)
        if text is Text.FRESH:
            self._replay.keep(rollouts)
        return rollouts

    @property
    def _updates(self) -> int:
        return self._policy.settings.updates if isinstance(self._policy, Policy) else 1

    async def _credited(self, batch: Batch, policy: Policy | Ranks) -> Batch:
        """The batch with the credit of its main stream, cut into its optimizer steps."""
        ((main, *beside),) = batch.steps
        with self._clock.span("credit"):
            main, measures, figures = await policy.credit(main)
        steps, metrics = ((main, *beside),), batch.metrics | figures
        batch = replace(batch, steps=steps, metrics=metrics, main=main, measures=measures)
        if not isinstance(policy, Policy) or self._updates == 1:
            return batch
        settings, seed = policy.settings, (self._seed, batch.step)
        cut = in_minibatches(main, settings.minibatches, settings.inner_epochs, seed=seed)
        # Given text is drawn for each optimizer step: its rows follow one another. What was written serves them all.
        written = {stream.name for stream in self._written}
        given = [[stream] * len(cut) if stream.name in written else in_turn(stream, len(cut)) for stream in beside]
        return replace(batch, steps=tuple(zip(cut, *given, strict=True)))

    async def _write(self, prompts: Sequence[Prompt], by: Sequence[Writer], step: int) -> list[Rollout]:
        """The rollouts in the prompts' order, whoever wrote them."""
        sampling = Sampling(
            samples=self._config.samples_per_prompt,
            max_new_tokens=self._config.max_new_tokens,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            seed=_collection_seed(self._seed, step),
        )
        own = {writer: [prompt for prompt, name in zip(prompts, by, strict=True) if name is writer] for writer in Writer}
        written: dict[Writer, list[Rollout]] = {
            Writer.DATASET: [_answer(prompt, self._config.max_new_tokens) for prompt in own[Writer.DATASET]]
        }
        if own[Writer.STUDENT]:
            assert self._engine is not None
            written[Writer.STUDENT] = await self._engine.generate(own[Writer.STUDENT], sampling)
        if own[Writer.TEACHER]:
            assert self._teacher is not None
            taught = await self._teacher.extend(own[Writer.TEACHER], sampling)
            written[Writer.TEACHER] = [replace(rollout, writer=Writer.TEACHER) for rollout in taught]
        each = {writer: 1 if writer is Writer.DATASET else self._config.samples_per_prompt for writer in Writer}
        waiting = {writer: iter(rollouts) for writer, rollouts in written.items()}
        return [next(waiting[writer]) for writer in by for _ in range(each[writer])]

    async def _score(self, texts: Sequence[Sequence[Rollout]]) -> list[list[TeacherScores]]:
        """Scores of each list of texts: one call for all."""
        flat = [rollout for text in texts for rollout in text]
        scores: list[TeacherScores] = []
        if flat:
            assert self._teacher is not None
            scores = await self._teacher.score(flat)
        ends = np.cumsum([len(text) for text in texts])
        return [scores[end - len(text) : end] for text, end in zip(texts, ends, strict=True)]


def writers(prefix: PrefixConfig, count: int, *, step: int, seed: int) -> list[Writer]:
    """Who answers each of the step's `count` prompts: every writer within one row of its share, or one for the whole step.

    A function of its arguments alone, and without bias: over many steps each row's writer has the configured shares.
    """
    rng = np.random.default_rng([seed, step, 1])
    shares = {Writer.STUDENT: prefix.student, Writer.TEACHER: prefix.teacher, Writer.DATASET: prefix.dataset}
    # Who has no share stays out of it: shares that add up to a little less than 1 would leave it a row now and then.
    names = [writer for writer, share in shares.items() if share]
    ends = np.cumsum([shares[writer] for writer in names])[:-1]
    # One point in each of `count` equal parts of the unit interval, in random order: stratified, so the shares are kept.
    points = [rng.random()] * count if prefix.per == "step" else (rng.permutation(count) + rng.random()) / count
    return [names[index] for index in np.searchsorted(ends, points, side="right")]


def _answer(prompt: Prompt, limit: int) -> Rollout:
    """The gold answer as a rollout; nobody sampled it, so it has no log-probabilities and no version."""
    assert prompt.gold is not None
    tokens = prompt.gold[:limit]
    finish = Finish.STOP if len(tokens) == len(prompt.gold) else Finish.LENGTH
    versions = np.full(len(tokens), -1, dtype=np.int32)
    return Rollout(prompt, tokens, None, versions, finish, text=prompt.answer or "", writer=Writer.DATASET)


class Examples:
    """Given text: gold answers, or plain text."""

    def __init__(self, examples: Sequence[Example], *, rows: int, seed: int) -> None:
        self._examples, self._rows, self._seed = examples, rows, seed

    async def next(self, step: int) -> Batch:
        """The next `rows` examples."""
        chosen = [self._examples[i] for i in drawn(len(self._examples), self._rows, step=step, seed=self._seed)]
        return Batch(step, ((collate_examples("supervised", chosen, objective="supervised"),),))

    def observe(self, evaluation: dict[str, float]) -> None: ...

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


def _collection_seed(seed: int, step: int) -> int:
    """Other samples for the same prompt in every step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
