"""Where batches come from: collections of text, scored and credited, for distillation; given text for SFT."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minidist.data.batching import collate, in_minibatches, in_order
from minidist.data.sources import Example
from minidist.evaluation.text import describe_text
from minidist.experience.draw import Mixture, Shuffled
from minidist.experience.streams import Source
from minidist.methods.credit import CreditMethod
from minidist.protocols import ExperienceSource, Teacher, Text
from minidist.run.tracking import Clock
from minidist.teachers.payload import floored_frac
from minidist.types import Batch, Prompt, Rollout, Stream


@dataclass(frozen=True)
class Collector(ExperienceSource):
    """One collection a step: the sources draw text, and the teacher scores it in one call.

    Args:
        prompts: the prompts of each step; their seed is also that of the minibatches.
        sources: the main stream first. The sources draw, and the teacher scores, in this order.
        teacher: scores the text; None when no source is scored.
        credit: credits the main stream; None when its objective needs no credit.
        clock: measures the seconds of drawing, scoring and credit.
    """

    prompts: Shuffled[Prompt]
    sources: Sequence[Source]
    teacher: Teacher | None
    credit: CreditMethod | None
    clock: Clock

    @property
    def _main(self) -> Text:
        return self.sources[0].text

    async def next(self, step: int) -> Batch:
        """The collection of step `step`."""
        prompts = self.prompts.at(step)
        with self.clock.span("generate"):
            drafts = [(source, await source.text.draw(step, prompts)) for source in self.sources]
        with self.clock.span("score"):
            (main, *others), floored = await self._streams(drafts)
        rollouts = tuple(drafts[0][1])
        metrics = {f"rollout/{name}": value for name, value in describe_text(rollouts).items()} | await self._main.figures()
        if floored is not None:
            metrics["teacher/floored_frac"] = floored
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

    async def _streams(self, drafts: Sequence[tuple[Source, list[Rollout]]]) -> tuple[list[Stream], float | None]:
        """The streams of the drafts, with the scores of all texts from one call, and the share of tokens without one."""
        texts = [rollout for source, rollouts in drafts if source.scored for rollout in rollouts]
        assert self.teacher is not None or not texts, "a source that is scored needs a teacher"
        all_scores = await self.teacher.score(texts) if self.teacher is not None and texts else []
        by_text = dict(zip(map(id, texts), all_scores, strict=True))
        streams = []
        for source, rollouts in drafts:
            scores = [by_text[id(rollout)] for rollout in rollouts] if source.scored else None
            streams.append(collate(source.name, rollouts, scores, weight=source.weight))
        return streams, floored_frac(all_scores)

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
