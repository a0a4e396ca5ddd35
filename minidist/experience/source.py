"""Where batches come from: collections of text, scored and credited, for distillation; given text for SFT."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from minidist.concurrency import both
from minidist.data.batching import collate, in_minibatches, in_order
from minidist.data.sources import Example
from minidist.evaluation.text import describe_text
from minidist.experience.draw import Mixture, Shuffled
from minidist.experience.scoring import Grouping, KnownScores, StreamedScores
from minidist.experience.streams import Source
from minidist.methods.credit import CreditMethod
from minidist.protocols import ExperienceSource, Finished, Scorer, Text
from minidist.run.tracking import Clock
from minidist.teachers.payload import floored_frac
from minidist.types import Batch, Prompt, Rollout, Stream


@dataclass(frozen=True)
class Draft:
    """The text of a collection.

    Args:
        step: of the collection.
        texts: the rollouts of each source.
        figures: metrics of the main text's draw.
        scores: of the main text, where it was scored as it was written.
    """

    step: int
    texts: Sequence[list[Rollout]]
    figures: dict[str, float]
    scores: KnownScores = field(default_factory=dict)

    @property
    def main(self) -> list[Rollout]:
        """The rollouts of the main stream."""
        return self.texts[0]


@dataclass(frozen=True)
class Collector(ExperienceSource):
    """One collection a step: the sources draw text, and the teacher scores it.

    Args:
        prompts: the prompts of each step; their seed is also that of the minibatches.
        sources: the main stream first. The sources draw, and the teacher scores, in this order.
        teacher: scores the text; None when no source is scored.
        credit: credits the main stream; None when its objective needs no credit.
        clock: measures the seconds of drawing, scoring and credit.
        grouping: which answers each call of the teacher scores, and when.
        stale: an earlier student may write the main text.
        writing: held while text is drawn. Who holds it may change the engines' weights, or let them write something else.
    """

    prompts: Shuffled[Prompt]
    sources: Sequence[Source]
    teacher: Scorer | None
    credit: CreditMethod | None
    clock: Clock
    grouping: Grouping = field(default_factory=Grouping)
    stale: bool = False
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def _main(self) -> Text:
        return self.sources[0].text

    async def next(self, step: int) -> Batch:
        """The collection of step `step`."""
        return await self.complete(await self.draw(step))

    async def draw(self, step: int, kept: Draft | None = None) -> Draft:
        """The text of step `step`, and the scores of what could be scored meanwhile. `kept`: the main text, already written."""
        if kept is not None or not self.grouping.stream:
            return await self._draw(step, kept)
        assert self.teacher is not None, "text that is scored as it is written needs a teacher"
        streamed = StreamedScores(self.teacher, self.grouping, self.prompts.size, self.clock)

        async def write() -> Draft:
            draft = await self._draw(step, None, streamed.finished)
            streamed.end()
            return draft

        draft, _ = await both(write(), streamed.run())
        return replace(draft, scores=streamed.known)

    async def _draw(self, step: int, kept: Draft | None, finished: Finished | None = None) -> Draft:
        prompts, (_, *others) = self.prompts.at(step), self.sources
        async with self.writing:
            with self.clock.span("generate"):
                main = kept.main if kept is not None else await self._main.draw(step, prompts, finished)
                texts = [main, *[await source.text.draw(step, prompts) for source in others]]
            return Draft(step, texts, await self._main.figures() if kept is None else kept.figures)

    async def complete(self, draft: Draft) -> Batch:
        """The collection of a draft: scored, and credited by the current student."""
        step, rollouts = draft.step, tuple(draft.main)
        with self.clock.span("score"):
            (main, *others), floored = await self._streams(draft)
        metrics = {f"rollout/{name}": value for name, value in describe_text(rollouts).items()} | draft.figures
        if floored is not None:
            metrics["teacher/floored_frac"] = floored
        named = Counter(rollout.prompt.teacher for rollout in rollouts if rollout.prompt.teacher)
        metrics |= {f"teacher/{name}/rows": float(count) for name, count in sorted(named.items())}
        if self.credit is None:
            return Batch(step, ((main, *others),), rollouts, metrics, main)
        with self.clock.span("credit"):
            main, measures, figures = await self.credit.credit(main)
        return Batch(step, self._steps(step, main, others), rollouts, metrics | figures, main, measures)

    def observe(self, evaluation: dict[str, float]) -> None:
        """Take note of the figures of an evaluation."""
        self._main.observe(evaluation)

    def state_dict(self) -> dict[str, Any]:
        """The state of the main text; all other draws are functions of the seed and the step."""
        return self._main.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._main.load_state_dict(state, self.prompts.items)

    async def _streams(self, draft: Draft) -> tuple[list[Stream], float | None]:
        """The streams of the draft, with the scores of all texts, and the share of tokens without one."""
        main, *others = [rollouts if source.scored else [] for source, rollouts in self._texts(draft)]
        known, beside = dict(draft.scores), [rollout for rollouts in others for rollout in rollouts]
        for texts in self.grouping.calls(main, beside, known):
            assert self.teacher is not None, "a source that is scored needs a teacher"
            known |= dict(zip(map(id, texts), await self.teacher.score(texts), strict=True))
        streams = []
        for index, (source, rollouts) in enumerate(self._texts(draft)):
            scores = [known[id(rollout)] for rollout in rollouts] if source.scored else None
            stale = self.stale and not index
            streams.append(collate(source.name, rollouts, scores, weight=source.weight, stale=stale))
        return streams, floored_frac([known[id(rollout)] for rollout in [*main, *beside]])

    def _texts(self, draft: Draft) -> list[tuple[Source, list[Rollout]]]:
        return list(zip(self.sources, draft.texts, strict=True))

    def _steps(self, step: int, main: Stream, others: Sequence[Stream]) -> tuple[tuple[Stream, ...], ...]:
        """The streams of each optimizer step: a minibatch of the main stream, and rows of the other streams."""
        assert self.credit is not None
        objective = self.credit.config.objective
        passes = objective.updates // objective.parts
        minibatches = in_minibatches(main, objective.parts, passes, seed=(self.prompts.seed, step))
        beside = [
            in_order(stream, len(minibatches)) if source.text.rows_per_update else [stream] * len(minibatches)
            for source, stream in zip(self.sources[1:], others, strict=True)
        ]
        return tuple(zip(minibatches, *beside, strict=True))


class SupervisedBatches(ExperienceSource):
    """Batches of given text for SFT: gold answers, or plain text."""

    def __init__(self, examples: Shuffled[Example] | Mixture[Example]) -> None:
        self._examples = examples

    async def next(self, step: int) -> Batch:
        """The examples of step `step`, as the stream `supervised`."""
        rollouts = [example.as_rollout() for example in self._examples.at(step)]
        return Batch(step, ((collate("supervised", rollouts),),))
