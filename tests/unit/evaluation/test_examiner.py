"""The figures of a student on held-out prompts."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from minidist.evaluation import divergence
from minidist.evaluation.examiner import Examiner, HeldOut
from minidist.evaluation.figures import Figure, curves, of_prompts, over_seeds, to_record
from minidist.types import Measures, Payload, Prompt, Rollout, Sampling, Stream, TeacherScores
from tests.support.tiny import random_rollouts

DIVERGENCES = ("reverse_kl", "reverse_kl_per_sequence", "forward_kl", "forward_kl_per_sequence")
PROMPTS = [rollout.prompt for rollout in random_rollouts([(2, 3), (4, 5)])]
PLAIN = Sampling(max_new_tokens=16)


class Measuring:
    """A learner that measures constants, and a teacher that scores nothing and counts its samples."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.written = 0

    async def measure(self, stream: Stream, temperature: float = 1.0, top_p: float = 1.0) -> Measures:
        row = np.repeat(np.arange(len(stream.rows)), [len(each.labels) for each in stream.rows]).astype(np.int32)
        zeros = np.zeros(len(row))
        return Measures(row, zeros, zeros - 1, *([zeros + 2, zeros + 3] if self.exact else []))

    async def score(self, rollouts: list[Rollout]) -> list[TeacherScores]:
        return [TeacherScores(Payload.SAMPLED, logprobs=np.zeros(len(rollout.tokens))) for rollout in rollouts]

    async def extend(self, prompts: list[Prompt], sampling: Sampling) -> list[Rollout]:
        self.written += len(prompts)
        return random_rollouts([(2, 3), (4, 5)])

    generate = extend


def examiner_of(
    teacher: Measuring, prompts: list[Prompt] = PROMPTS, sampling: Sampling = PLAIN, seeds: Sequence[int] = (0,)
) -> Examiner:
    return Examiner(HeldOut(prompts, graded=False), teacher, sampling, seeds=seeds, tolerance_nats=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [True, False])
def test_divergences_are_left_out_where_the_payload_does_not_hold_them(exact: bool) -> None:
    teacher, student = Measuring(exact), Measuring(exact)
    figures = to_record(asyncio.run(examiner_of(teacher).examine(student, student)))
    assert {name: figures.get(name) for name in ("reverse_kl", "forward_kl")} == (
        {"reverse_kl": 2.0, "forward_kl": 3.0} if exact else {"reverse_kl": None, "forward_kl": None}
    )
    assert figures["length_mean_tokens"] == 4.0
    assert teacher.written == (2 if exact else 0), "samples of the teacher that would measure nothing"


def test_a_teacher_that_does_not_write_leaves_out_what_its_answers_measure() -> None:
    teacher, student = Measuring(True), Measuring(True)
    options = {"seeds": (0,), "tolerance_nats": 1.0, "writes": False}
    examiner = Examiner(HeldOut(PROMPTS, graded=False), teacher, PLAIN, **options)  # type: ignore[arg-type]
    figures = to_record(asyncio.run(examiner.examine(student, student)))
    assert figures["reverse_kl"] == 2.0 and "forward_kl" not in figures and "exposure_bias" not in figures
    assert teacher.written == 0


@pytest.mark.parametrize("sampling", [replace(PLAIN, temperature=0.0), replace(PLAIN, temperature=0.7, top_p=0.9)])
def test_divergences_are_left_out_of_answers_that_are_no_samples_of_the_model(sampling: Sampling) -> None:
    """Text is measured, and engine and learner are compared on the distribution that the answers were drawn from."""
    asked = []

    class Watched(Measuring):
        async def measure(self, stream: Stream, temperature: float = 1.0, top_p: float = 1.0) -> Measures:
            asked.append((temperature, top_p, stream.rows[0].scores))
            return await super().measure(stream)

    teacher, student = Watched(True), Watched(False)
    examiner = examiner_of(teacher, sampling=sampling)
    figures = to_record(asyncio.run(examiner.examine(student, student)))
    assert figures["length_mean_tokens"] == 4.0 and not any("kl" in name or "bias" in name for name in figures)
    assert asked == [(*((0.7, 0.9) if sampling.temperature else (1.0, 1.0)), None)] and teacher.written == 0
    of_teacher = to_record(asyncio.run(examiner.examine_teacher()))
    assert of_teacher.keys() == figures.keys()


def test_the_loss_on_gold_answers_is_that_of_all_their_tokens() -> None:
    """The learner gets them whole, after their prompts; without their tokens the figure is left out."""

    class Reading(Measuring):
        async def measure(self, stream: Stream, temperature: float = 1.0, top_p: float = 1.0) -> Measures:
            if stream.name != "gold":
                return await super().measure(stream)
            logprobs = -np.concatenate([row.labels for row in stream.rows]) / 10
            return Measures(np.zeros(len(logprobs), dtype=np.int32), logprobs)

    gold = [np.array([1, 2, 6], dtype=np.int32), np.array([3], dtype=np.int32)]
    prompts = [replace(prompt, gold=tokens) for prompt, tokens in zip(PROMPTS, gold, strict=True)]
    figures = asyncio.run(examiner_of(Reading(True), prompts).examine(Reading(True), Reading(True)))
    assert figures["gold_nats"] == Figure(pytest.approx((1 + 2 + 6 + 3) / 40))
    assert "gold_nats" not in asyncio.run(examiner_of(Reading(True)).examine(Reading(True), Reading(True)))


class Recording(Measuring):
    """Also records the options of each call, and writes answers whose length depends on the seed."""

    def __init__(self) -> None:
        super().__init__(True)
        self.asked: list[tuple[int, int | None]] = []

    async def extend(self, prompts: list[Prompt], sampling: Sampling) -> list[Rollout]:
        self.asked.append((sampling.seed, sampling.no_repeat_ngram_size))
        return random_rollouts([(2, 3), (4, sampling.seed if sampling.no_repeat_ngram_size is None else 9)])

    generate = extend


def test_figures_are_means_over_seeds_with_their_spread() -> None:
    teacher, student = Recording(), Recording()
    examiner = examiner_of(teacher, seeds=[5, 7, 6])
    figures = asyncio.run(examiner.examine(student, student))
    asyncio.run(examiner.examine(student, student))
    assert student.asked == [(5, None), (7, None), (6, None)] * 2
    assert teacher.asked == [(5, None), (7, None), (6, None)], "the teacher's samples serve every student"
    length = figures["length_mean_tokens"]
    assert (length.mean, length.spread) == (pytest.approx((4 + 5 + 4.5) / 3), pytest.approx(0.5))
    assert figures["reverse_kl"].error == 0.0 and figures["reverse_kl"].spread == 0.0
    of_teacher = asyncio.run(examiner.examine_teacher())
    assert of_teacher["length_mean_tokens"].spread == pytest.approx(0.5) and of_teacher["exposure_bias"] == Figure(0.0)


def test_figures_are_recorded_in_order_with_the_curve_apart() -> None:
    examiner = examiner_of(Recording(), sampling=Sampling(max_new_tokens=40), seeds=[5, 7])
    figures = asyncio.run(examiner.examine(Recording(), Recording()))
    text = ("length_mean_tokens", "truncated_frac", "repetition_frac", "distinct_4")
    assert list(to_record(figures)) == [
        *(f"{name}{suffix}" for name in DIVERGENCES for suffix in ("", "_sd", "_se")),
        *(f"{name}{suffix}" for name in ("exposure_bias", *text) for suffix in ("", "_sd")),
    ]
    assert curves(figures)["exposure_bias_curve"].keys() == {"16", "32", "40"}


def test_answers_without_repeated_ngrams_are_drawn_apart_from_those_of_the_divergences() -> None:
    teacher, student = Recording(), Recording()
    examiner = examiner_of(teacher, sampling=Sampling(max_new_tokens=16, no_repeat_ngram_size=6), seeds=[5])
    figures = asyncio.run(examiner.examine(student, student))
    assert student.asked == [(5, None), (5, 6)] and teacher.asked == [(5, None)]
    assert figures["length_mean_tokens"].mean == 6 and figures["reverse_kl_per_sequence"].mean == 2.0 * 4
    assert asyncio.run(examiner.examine_teacher())["length_mean_tokens"].mean == 6
    assert teacher.asked == [(5, None), (5, 6)]


def test_figures_hold_the_value_of_each_prompt() -> None:
    """Their mean is the figure, also where it is a mean over tokens; over sampling seeds they are averaged prompt by prompt."""
    rows, values = np.array([0, 0, 0, 1], np.int32), np.array([1.0, 2.0, 3.0, 6.0])
    reverse = divergence.reverse(Measures(rows, values, values, values, values))["reverse_kl"]
    assert reverse.parts is not None and reverse.mean == 3.0
    assert reverse.parts.tolist() == [1.5, 4.5], (
        "6 nats are 3 less than 3 tokens have on average: 3 - 3 * 2 / 4, and 3 + 3 * 2 / 4"
    )
    first, second = (Figure.of_samples(np.array(values)) for values in ([0.0, 1.0], [1.0, 1.0]))
    [both] = of_prompts(over_seeds([{"accuracy": first}, {"accuracy": second}])).values()
    assert both == [0.5, 1.0] and of_prompts({"exposure_bias": Figure(1.0)}) == {}
