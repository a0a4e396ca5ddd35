"""All figures of one student on held-out prompts, with the roles that training uses."""

from collections.abc import Mapping, Sequence

import numpy as np

from minidist.data.batching import collate
from minidist.data.questions import Question
from minidist.data.sources import gold_rollout
from minidist.evaluation import divergence
from minidist.evaluation.choices import choice_figures
from minidist.evaluation.text import accuracy, describe_text, rouge_l
from minidist.protocols import Learner, RolloutEngine, Teacher
from minidist.run.canaries import check_engine
from minidist.types import Prompt, Rollout, Sampling, Stream


class Examiner:
    """Holds the held-out prompts, and the teacher's samples on them, which serve every student alike.

    Figures of samples are means over `seeds`. Engine and learner must give the student's samples the same log-probabilities
    within `tolerance_nats`. `graded`: the answers are graded exactly (generated tasks); otherwise gold answers, where there are
    any, give ROUGE-L. `no_repeat_ngram_size`: the text is measured on answers in which no such n-gram is written twice; the
    divergences on others, of the plain distribution. `questions`: by name, for accuracy and calibration.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        teacher: Teacher,
        *,
        max_new_tokens: int,
        seeds: Sequence[int],
        graded: bool,
        tolerance_nats: float,
        no_repeat_ngram_size: int | None = None,
        questions: Mapping[str, Sequence[Question]] | None = None,
    ) -> None:
        self._prompts, self._teacher = prompts, teacher
        self._max_new_tokens, self._seeds, self._graded = max_new_tokens, seeds, graded
        self._tolerance, self._blocked = tolerance_nats, no_repeat_ngram_size
        self._questions = questions or {}
        self._taught: dict[int, list[Rollout]] = {}

    async def examine(self, engine: RolloutEngine, learner: Learner) -> dict[str, float]:
        """Figures of the student that `engine` writes with and `learner` holds; samples at temperature 1.

        Exact divergences where the teacher gives hidden states; other payloads leave them out.
        """
        rounds = [await self._round(engine, learner, seed) for seed in self._seeds]
        return over_seeds(rounds) | await self._gold(learner) | await self._ask(learner)

    async def examine_teacher(self, learner: Learner | None = None) -> dict[str, float]:
        """The teacher's own figures; it does not diverge from itself. `learner`: any, for the questions it shall answer."""
        names = ("reverse_kl", "forward_kl", "reverse_kl_per_sequence", "forward_kl_per_sequence", "exposure_bias")
        rounds = []
        for seed in self._seeds:
            if self._blocked is None:
                text = await self._teacher_text(seed)
            else:
                text = await self._teacher.extend(self._prompts, self._sampling(seed, self._blocked))
            rounds.append(describe_text(text) | self._graded_figures(text))
        asked = {} if learner is None else await self._ask(learner, teacher=True)
        return dict.fromkeys(names, 0.0) | over_seeds(rounds) | asked

    async def _round(self, engine: RolloutEngine, learner: Learner, seed: int) -> dict[str, float]:
        """The figures of one sampling seed."""
        rollouts = await engine.generate(self._prompts, self._sampling(seed))
        measures = await learner.measure(await self._scored("own", rollouts))
        check_engine(measures, rollouts, self._tolerance)  # the two must hold the same weights
        figures = divergence.reverse(measures)
        if figures:  # else the teacher does not give full distributions: its samples would measure nothing
            taught = await learner.measure(await self._scored("taught", await self._teacher_text(seed)))
            figures |= divergence.forward(taught) | divergence.exposure_bias(measures, taught, self._max_new_tokens)
        if self._blocked is not None:
            rollouts = await engine.generate(self._prompts, self._sampling(seed, self._blocked))
        return figures | describe_text(rollouts) | self._graded_figures(rollouts)

    async def _gold(self, learner: Learner) -> dict[str, float]:
        """The loss on the gold answers, nats a token, where they were made into tokens."""
        answers = [gold_rollout(prompt) for prompt in self._prompts if prompt.gold is not None]
        if not answers:
            return {}
        measures = await learner.measure(collate("gold", answers))
        return {"gold_nats": -float(measures.student_logprob.mean())}

    async def _ask(self, learner: Learner, *, teacher: bool = False) -> dict[str, float]:
        """Figures of the learner's student on the questions, or of the teacher, whose head the learner holds."""
        figures: dict[str, float] = {}
        for name, questions in self._questions.items():
            choices = [choice.as_rollout() for question in questions for choice in question.choices]
            scores = await self._teacher.score(choices) if teacher else None
            measures = await learner.measure(collate(name, choices, scores))
            logprobs = measures.teacher_logprob if teacher else measures.student_logprob
            assert logprobs is not None
            found = choice_figures(questions, measures.row, logprobs)
            figures |= {f"{name}_{figure}": value for figure, value in found.items()}
        return figures

    async def _teacher_text(self, seed: int) -> list[Rollout]:
        """The teacher's samples, written once."""
        if seed not in self._taught:
            self._taught[seed] = await self._teacher.extend(self._prompts, self._sampling(seed))
        return self._taught[seed]

    async def _scored(self, name: str, rollouts: Sequence[Rollout]) -> Stream:
        return collate(name, rollouts, await self._teacher.score(rollouts))

    def _graded_figures(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        if any(rollout.prompt.answer is None for rollout in rollouts):
            return {}
        return accuracy(rollouts) if self._graded else rouge_l(rollouts)

    def _sampling(self, seed: int, blocked: int | None = None) -> Sampling:
        return Sampling(max_new_tokens=self._max_new_tokens, seed=seed, no_repeat_ngram_size=blocked)


def over_seeds(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of the rounds' figures and, from two rounds on, their standard deviation as `<name>_sd`.

    A standard error `<name>_se` is still that of one round: it says how figures vary with the prompts, `_sd` with the samples.
    """
    if len(rounds) == 1:
        return rounds[0]
    figures: dict[str, float] = {}
    for name in rounds[0]:
        values = np.array([each[name] for each in rounds])
        figures[name] = float(values.mean())
        if not name.endswith("_se") and "_at_" not in name:
            figures[f"{name}_sd"] = float(values.std(ddof=1))
    return figures
