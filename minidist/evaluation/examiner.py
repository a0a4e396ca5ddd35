"""All figures of one student on held-out prompts, with the roles that training uses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from minidist.data.batching import collate
from minidist.data.questions import Question
from minidist.data.sources import gold_rollout
from minidist.evaluation import divergence
from minidist.evaluation.choices import choice_figures
from minidist.evaluation.figures import Figure, Figures, over_seeds
from minidist.evaluation.text import accuracy, describe_text, rouge_l
from minidist.protocols import Learner, RolloutEngine, Scorer
from minidist.run.canaries import check_engine
from minidist.types import Measures, Prompt, Rollout, Sampling, Stream


@dataclass(frozen=True)
class HeldOut:
    """The prompts and questions that a model is examined on.

    Args:
        prompts: answered once with each sampling seed.
        graded: answers are graded exactly (generated tasks); otherwise gold answers give ROUGE-L, where the prompts have them.
        questions: multiple-choice questions by name, for accuracy and calibration.
    """

    prompts: Sequence[Prompt]
    graded: bool
    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)


class Examiner:
    """Measures students on held-out prompts, and keeps the teacher's samples, which every student is compared with.

    Args:
        held_out: the prompts and questions.
        teacher: scores the students' samples; hidden states make the divergences exact, other payloads leave them out. Of
            several teachers each row's own, and the divergences of each teacher's rows have figures of their own.
        sampling: one answer a prompt. Divergences are left out unless it draws from the model's own distribution. With
            `no_repeat_ngram_size`, figures of the text are of such answers; divergences are of other answers, drawn without it.
        seeds: sampling seeds; figures are means over them.
        tolerance_nats: engine and learner must agree this closely on the log-probabilities of the student's samples.
        writes: whether the teacher writes; without its samples, forward divergences and exposure bias are left out.
    """

    def __init__(
        self,
        held_out: HeldOut,
        teacher: Scorer,
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        tolerance_nats: float,
        writes: bool = True,
    ) -> None:
        self._held_out = held_out
        self._teacher = teacher
        self._sampling = sampling
        self._seeds = seeds
        self._tolerance = tolerance_nats
        self._writes = writes
        self._teacher_samples: dict[Sampling, list[Rollout]] = {}

    async def examine(self, engine: RolloutEngine, learner: Learner) -> Figures:
        """Figures of the student that `engine` samples from and `learner` holds."""
        rounds = [await self._examine(engine, learner, seed) for seed in self._seeds]
        return over_seeds(rounds) | await self._gold(learner) | await self._answer_questions(learner)

    async def examine_teacher(self, learner: Learner | None = None) -> Figures:
        """Figures of the teacher, whose divergence from itself is 0. `learner`: any one, needed for the questions."""
        names = ("reverse_kl", "forward_kl", "reverse_kl_per_sequence", "forward_kl_per_sequence", "exposure_bias")
        drawn = [await self._sampled_by_teacher(replace(self._sampling, seed=seed)) for seed in self._seeds]
        rounds = [self._text_figures(rollouts) for rollouts in drawn]
        answered = {} if learner is None else await self._answer_questions(learner, as_teacher=True)
        divergences = dict.fromkeys(names, Figure(0.0)) if self._sampling.own else {}
        return divergences | over_seeds(rounds) | answered

    async def _examine(self, engine: RolloutEngine, learner: Learner, seed: int) -> Figures:
        """The figures of one sampling seed."""
        prompts, sampling = self._held_out.prompts, replace(self._sampling, seed=seed)
        plain = replace(sampling, no_repeat_ngram_size=None)
        rollouts = await engine.generate(prompts, plain)
        if sampling.own:
            measures = await learner.measure(await self._scored("student", rollouts))
        else:
            measures = await learner.measure(collate("student", rollouts), *sampling.processed)
        check_engine(measures, rollouts, self._tolerance)  # both must hold the same weights
        figures = divergence.reverse(measures) | _by_teacher(measures, rollouts, divergence.reverse)
        if figures and self._writes:  # without full distributions the teacher's samples would measure nothing
            samples = await self._sampled_by_teacher(plain)
            of_teacher = await learner.measure(await self._scored("teacher", samples))
            figures |= divergence.forward(of_teacher) | divergence.exposure_bias(measures, of_teacher, sampling.max_new_tokens)
            figures |= _by_teacher(of_teacher, samples, divergence.forward)
        if sampling != plain:
            rollouts = await engine.generate(prompts, sampling)
        return figures | self._text_figures(rollouts)

    async def _gold(self, learner: Learner) -> Figures:
        """The loss on the gold answers, nats a token, where the prompts hold their tokens."""
        answers = [gold_rollout(prompt) for prompt in self._held_out.prompts if prompt.gold is not None]
        if not answers:
            return {}
        measures = await learner.measure(collate("gold", answers))
        return {"gold_nats": Figure(-float(measures.student_logprob.mean()))}

    async def _answer_questions(self, learner: Learner, *, as_teacher: bool = False) -> Figures:
        """Figures of the learner's student on the questions; `as_teacher`: of the teacher, whose head the learner holds."""
        figures: Figures = {}
        for name, questions in self._held_out.questions.items():
            choices = [choice.as_rollout() for question in questions for choice in question.choices]
            scores = await self._teacher.score(choices) if as_teacher else None
            measures = await learner.measure(collate(name, choices, scores))
            logprobs = measures.teacher_logprob if as_teacher else measures.student_logprob
            assert logprobs is not None
            found = choice_figures(questions, measures.row, logprobs)
            figures |= {f"{name}_{figure}": value for figure, value in found.items()}
        return figures

    async def _sampled_by_teacher(self, sampling: Sampling) -> list[Rollout]:
        """The teacher's samples, drawn once for all students."""
        if sampling not in self._teacher_samples:
            self._teacher_samples[sampling] = await self._teacher.extend(self._held_out.prompts, sampling)
        return self._teacher_samples[sampling]

    async def _scored(self, name: str, rollouts: Sequence[Rollout]) -> Stream:
        return collate(name, rollouts, await self._teacher.score(rollouts))

    def _text_figures(self, rollouts: Sequence[Rollout]) -> Figures:
        figures = {name: Figure(value) for name, value in describe_text(rollouts).items()}
        if any(rollout.prompt.answer is None for rollout in rollouts):
            return figures
        return figures | ({"accuracy": accuracy(rollouts)} if self._held_out.graded else {"rouge_l": rouge_l(rollouts)})


def _by_teacher(measures: Measures, rollouts: Sequence[Rollout], figures: Callable[[Measures], Figures]) -> Figures:
    """The figures of the rows of each of several teachers, as `teacher/NAME/reverse_kl`."""
    parts = divergence.by_teacher(measures, rollouts)
    return {f"teacher/{name}/{key}": value for name, part in parts.items() for key, value in figures(part).items()}
