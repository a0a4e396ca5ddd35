"""Figures of text and of divergence, against naive computations."""

import asyncio
import doctest
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

import minidist.evaluation.choices as choices_module
import minidist.evaluation.text as text_module
import minidist.rollout.ngrams as ngrams_module
from minidist.data.questions import Question
from minidist.data.sources import Example
from minidist.evaluation import divergence
from minidist.evaluation.choices import calibration_error, choice_figures
from minidist.evaluation.examiner import Examiner, over_seeds
from minidist.evaluation.table import show
from minidist.evaluation.text import accuracy, describe_text, distinct, repetition, rouge_l
from minidist.types import Finish, Measures, Payload, Prompt, Rollout, Sampling, Stream, TeacherScores
from tests.support.tiny import random_rollouts


def answered(pairs: list[tuple[str, str]]) -> list[Rollout]:
    """Rollouts of (written, gold)."""
    none = np.zeros(1, dtype=np.int32)
    return [
        Rollout(Prompt(at, none, "?", gold), none, none, none, Finish.STOP, 0, said) for at, (said, gold) in enumerate(pairs)
    ]


def test_repetition() -> None:
    assert repetition([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(1 / 5)
    assert repetition([[7] * 8]) == pytest.approx(4 / 5)
    assert repetition([[1, 2, 3, 4, 5]]) == 0
    assert repetition([[1, 2, 3]]) == 0
    assert repetition([]) == 0
    assert repetition([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0, "the same text twice does not repeat itself"
    assert repetition([[7] * 8, [1, 2, 3, 4, 5, 6, 7, 8]]) == pytest.approx(4 / 10)


def test_distinct() -> None:
    assert distinct([[1, 2, 3, 4, 1, 2, 3, 4]]) == 4 / 5, "as many as are not repeated, in one text"
    assert distinct([[1, 2, 3, 4], [1, 2, 3, 4]]) == 1 / 2, "the same text twice"
    assert distinct([[1, 2, 3, 4, 5], [2, 3, 4, 5, 6], [7] * 5]) == 4 / 6
    assert distinct([[1, 2, 3], []]) == 1
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 3, 30).tolist() for _ in range(5)]
    naive = [tuple(text[at + shift] for shift in range(4)) for text in texts for at in range(27)]
    assert distinct(texts) == len(set(naive)) / 135


@pytest.mark.parametrize("module", [text_module, choices_module, ngrams_module])
def test_docstring_examples(module: Any) -> None:
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0


def test_describe_text() -> None:
    rollouts = random_rollouts([(2, 4), (9, 2)])
    rollouts[0] = Rollout(rollouts[0].prompt, rollouts[0].tokens, rollouts[0].logprobs, rollouts[0].versions, Finish.STOP)
    wanted = {"length_mean_tokens": 3.0, "truncated_frac": 0.5, "repetition_frac": 0.0, "distinct_4": 1.0}
    assert describe_text(rollouts) == wanted


def test_accuracy_and_its_error() -> None:
    figures = accuracy(answered([("1", "1"), (" 2\n", "2"), ("3", "4"), ("", "5")]))
    assert figures["accuracy"] == 0.5
    assert figures["accuracy_se"] == pytest.approx(math.sqrt(4 * 0.25 / 3) / math.sqrt(4))


def test_rouge_l_is_that_of_the_package() -> None:
    pairs = [("the cats sat on a mat", "the cat sat on the mat"), ("no", "yes indeed"), ("all of it", "all of it")]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    values = [100 * scorer.score(gold, said)["rougeL"].fmeasure for said, gold in pairs]
    figures = rouge_l(answered(pairs))
    assert values[0] == pytest.approx(100 * 5 / 6), "stemmed: cats is cat"
    assert values[1:] == [0, 100]
    assert figures["rouge_l"] == pytest.approx(sum(values) / 3)
    spread = sum((value - sum(values) / 3) ** 2 for value in values) / 2
    assert figures["rouge_l_se"] == pytest.approx(math.sqrt(spread / 3))


def with_references(rollout: Rollout, *references: str) -> Rollout:
    return replace(rollout, prompt=replace(rollout.prompt, answer=references[0], references=references))


def test_the_gold_answer_that_fits_best_counts() -> None:
    said = answered([("the cats sat", ""), ("it is red", ""), ("7", "")])
    golds = [("a dog ran", "the cat sat down", "the"), ("red", "blue"), ("3", "7")]
    rollouts = [with_references(rollout, *gold) for rollout, gold in zip(said, golds, strict=True)]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    best = [scorer.score_multi(list(gold), r.text)["rougeL"].fmeasure for r, gold in zip(rollouts, golds, strict=True)]
    assert best[0] == pytest.approx(6 / 7), "three stems of three and of four"
    assert best[1] == pytest.approx(1 / 2)
    assert rouge_l(rollouts)["rouge_l"] == pytest.approx(100 * sum(best) / 3)
    assert accuracy(rollouts)["accuracy"] == pytest.approx(1 / 3)


def accumulated(values: list[list[float]]) -> Measures:
    """Forward divergences of rows, token by token."""
    row = np.repeat(np.arange(len(values)), [len(each) for each in values]).astype(np.int32)
    flat = np.concatenate(values)
    return Measures(row, -flat, -flat, 9 * flat, flat)


def test_exposure_bias_by_hand() -> None:
    own, taught = accumulated([[1.0] * 20, [3.0]]), accumulated([[1.0] * 20, [1.0] * 20])
    got = divergence.exposure_bias(own, taught, 20)
    # At 16: the first row has added 16, the second its one token of 3, and both are averaged; the teacher's text 16.
    assert got["exposure_bias_at_16"] == pytest.approx(100 * ((16 + 3) / 2 - 16) / 16)
    assert got["exposure_bias_at_20"] == got["exposure_bias"] == pytest.approx(100 * ((20 + 3) / 2 - 20) / 20)
    assert set(got) == {"exposure_bias", "exposure_bias_at_16", "exposure_bias_at_20"}
    first = divergence.exposure_bias(accumulated([[6.0, 0.0]]), accumulated([[2.0, 9.0]]), 1)
    assert first["exposure_bias_at_1"] == pytest.approx(200), "the first token of the answer counts, and it alone"


def test_exposure_bias_against_the_naive_sums() -> None:
    rng = np.random.default_rng(1)
    lines = [[rng.exponential(size=rng.integers(1, 60)).tolist() for _ in range(30)] for _ in range(2)]
    got = divergence.exposure_bias(accumulated(lines[0]), accumulated(lines[1]), 50)
    assert list(got) == ["exposure_bias", *(f"exposure_bias_at_{length}" for length in (16, 32, 48, 50))]
    for length in (16, 32, 48, 50):
        own, taught = (sum(sum(line[:length]) for line in each) / 30 for each in lines)
        assert got[f"exposure_bias_at_{length}"] == pytest.approx(100 * (own - taught) / taught)


def test_exposure_bias_of_the_same_samples_is_none() -> None:
    table, _ = measures()
    assert set(divergence.exposure_bias(table, table, 40).values()) == {0.0}


def test_exposure_bias_of_the_teacher_itself_is_none() -> None:
    nothing, rounding = accumulated([[0.0] * 5]), accumulated([[3e-8, -1e-8], [5e-8]])
    assert set(divergence.exposure_bias(nothing, nothing, 5).values()) == {0.0}
    assert set(divergence.exposure_bias(rounding, nothing, 5).values()) == {0.0}
    assert math.isfinite(divergence.exposure_bias(accumulated([[1.0]]), nothing, 5)["exposure_bias"])
    assert divergence.exposure_bias(replace(nothing, forward_kl=None), nothing, 5) == {}


def test_calibration_error_by_hand() -> None:
    # Bins (0.5, 0.6]: 0.55 and 0.6, one of two right; (0.9, 1]: 0.95 and 1, both right.
    assert calibration_error([0.55, 0.6, 0.95, 1.0], [True, False, True, True]) == pytest.approx((0.15 + 0.05) / 4)
    assert calibration_error([0.7], [True]) == pytest.approx(0.3)
    # 0.7 ends the bin that 0.65 is in: their errors cancel; 0.71 begins the next.
    assert calibration_error([0.7, 0.65], [True, False]) == pytest.approx(0.35 / 2)
    assert calibration_error([0.71, 0.65], [True, False]) == pytest.approx((0.29 + 0.65) / 2)


def test_calibration_error_against_the_definition() -> None:
    rng = np.random.default_rng(2)
    sure, right = rng.uniform(0.2, 1, 500), rng.random(500) < 0.6
    naive = 0.0
    for low in range(10):
        inside = (sure > low / 10) & (sure <= (low + 1) / 10)
        if inside.any():
            naive += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert calibration_error(sure.tolist(), right.tolist()) == pytest.approx(naive)


def test_choices_are_weighed_by_all_their_tokens() -> None:
    """Two questions of two choices and of three; probabilities of whole choices, normalised over a question's own."""
    sizes = [(2, 1), (1, 3, 1)]
    questions = [
        Question(tuple(Example(np.zeros(4 + size, dtype=np.int32), 4) for size in lengths), right)
        for lengths, right in zip(sizes, (0, 1), strict=True)
    ]
    logprobs = np.log([0.9, 0.4, 0.2, 0.2, 0.5, 0.5, 0.4, 0.1])
    rows = np.array([0, 0, 1, 2, 3, 3, 3, 4])
    figures = choice_figures(questions, rows, logprobs)
    chosen = [0.36 / 0.56, 0.2 / 0.4]
    assert figures["accuracy"] == 0.5
    assert figures["ece"] == pytest.approx((1 - chosen[0] + chosen[1]) / 2)


def measures(seed: int = 0, rows: int = 40) -> tuple[Measures, list[np.ndarray]]:
    """Values of uneven rows, and the same row by row."""
    rng = np.random.default_rng(seed)
    parts = [rng.exponential(size=rng.integers(1, 9)) + rng.exponential() for _ in range(rows)]
    index = np.repeat(np.arange(rows), [len(part) for part in parts])
    values = np.concatenate(parts)
    return Measures(index.astype(np.int32), -values, -values, values, 2 * values), parts


def test_divergence_means_and_errors() -> None:
    table, parts = measures()
    got = divergence.reverse(table)
    count, tokens = len(parts), sum(len(part) for part in parts)
    sums = [sum(part) for part in parts]
    mean, per_sequence = sum(sums) / tokens, sum(sums) / count
    assert got["reverse_kl"] == pytest.approx(mean)
    assert got["reverse_kl_per_sequence"] == pytest.approx(per_sequence)
    # Ratio estimator (Cochran, Sampling Techniques, eq. 6.9): variance of the residuals over the squared mean length.
    residual = sum((total - mean * len(part)) ** 2 for total, part in zip(sums, parts, strict=True)) / (count - 1)
    assert got["reverse_kl_se"] == pytest.approx(math.sqrt(residual / count) / (tokens / count))
    spread = sum((total - per_sequence) ** 2 for total in sums) / (count - 1)
    assert got["reverse_kl_per_sequence_se"] == pytest.approx(math.sqrt(spread / count))


def test_error_of_the_token_mean_is_that_of_the_jackknife() -> None:
    table, parts = measures(rows=300)
    whole, tokens = sum(part.sum() for part in parts), sum(len(part) for part in parts)
    without = [(whole - part.sum()) / (tokens - len(part)) for part in parts]
    jackknife = math.sqrt((len(parts) - 1) * np.var(without))
    assert divergence.reverse(table)["reverse_kl_se"] == pytest.approx(jackknife, rel=0.02)


def test_forward_takes_the_forward_column() -> None:
    table, _ = measures()
    forward, reverse = divergence.forward(table), divergence.reverse(table)
    assert set(forward) == {"forward_kl", "forward_kl_se", "forward_kl_per_sequence", "forward_kl_per_sequence_se"}
    assert forward["forward_kl"] == pytest.approx(2 * reverse["reverse_kl"])


def test_one_sequence_has_no_error_of_its_mean() -> None:
    table, parts = measures(rows=1)
    got = divergence.reverse(table)
    assert got["reverse_kl"] == pytest.approx(parts[0].mean())
    assert not [name for name in got if name.endswith("_se")]


class Measuring:
    """A learner that measures what it is told, and a teacher that scores nothing and counts what it writes."""

    def __init__(self, exact: bool) -> None:
        self.exact, self.written = exact, 0

    async def measure(self, stream: Stream, temperature: float = 1.0) -> Measures:
        row = np.repeat(np.arange(len(stream.rows)), [len(each.labels) for each in stream.rows]).astype(np.int32)
        said = np.zeros(len(row))
        return Measures(row, said, said - 1, *([said + 2, said + 3] if self.exact else []))

    async def score(self, rollouts: list[Rollout]) -> list[TeacherScores]:
        return [TeacherScores(Payload.SAMPLED, logprobs=np.zeros(len(rollout.tokens))) for rollout in rollouts]

    async def extend(self, prompts: list[Prompt], sampling: Sampling) -> list[Rollout]:
        self.written += len(prompts)
        return random_rollouts([(2, 3), (4, 5)])

    generate = extend


@pytest.mark.parametrize("exact", [True, False])
def test_divergences_are_left_out_where_the_payload_does_not_hold_them(exact: bool) -> None:
    rollouts = random_rollouts([(2, 3), (4, 5)])
    teacher, student, options = Measuring(exact), Measuring(exact), {"max_new_tokens": 5, "seeds": [0], "graded": False}
    examiner = Examiner([rollout.prompt for rollout in rollouts], teacher, tolerance_nats=1.0, **options)
    figures = asyncio.run(examiner.examine(student, student))
    assert {name: figures.get(name) for name in ("reverse_kl", "forward_kl")} == (
        {"reverse_kl": 2.0, "forward_kl": 3.0} if exact else {"reverse_kl": None, "forward_kl": None}
    )
    assert figures["length_mean_tokens"] == 4.0
    assert teacher.written == (2 if exact else 0), "samples of the teacher that would measure nothing"


def test_the_loss_on_gold_answers_is_that_of_all_their_tokens() -> None:
    """Given to the learner whole, after their prompts; left out where they are not tokens."""

    class Reading(Measuring):
        async def measure(self, stream: Stream, temperature: float = 1.0) -> Measures:
            if stream.name != "gold":
                return await super().measure(stream)
            said = -np.concatenate([row.labels for row in stream.rows]) / 10
            return Measures(np.zeros(len(said), dtype=np.int32), said)

    rollouts = random_rollouts([(2, 3), (4, 5)])
    gold = [np.array([1, 2, 6], dtype=np.int32), np.array([3], dtype=np.int32)]
    prompts = [replace(rollout.prompt, gold=tokens) for rollout, tokens in zip(rollouts, gold, strict=True)]
    options: dict[str, Any] = {"max_new_tokens": 5, "seeds": [0], "graded": False, "tolerance_nats": 1.0}
    figures = asyncio.run(Examiner(prompts, Reading(True), **options).examine(Reading(True), Reading(True)))
    assert figures["gold_nats"] == pytest.approx((1 + 2 + 6 + 3) / 40)
    bare = [rollout.prompt for rollout in rollouts]
    assert "gold_nats" not in asyncio.run(Examiner(bare, Reading(True), **options).examine(Reading(True), Reading(True)))


class Recording(Measuring):
    """Also remembers with which options it was asked to write, and writes what depends on the seed."""

    def __init__(self) -> None:
        super().__init__(True)
        self.asked: list[tuple[int, int | None]] = []

    async def extend(self, prompts: list[Prompt], sampling: Sampling) -> list[Rollout]:
        blocked = sampling.no_repeat_ngram_size
        self.asked.append((sampling.seed, blocked))
        return random_rollouts([(2, 3), (4, sampling.seed if blocked is None else 9)])

    generate = extend


def examiner_of(teacher: Recording, **options: Any) -> Examiner:
    prompts = [rollout.prompt for rollout in random_rollouts([(2, 3), (4, 5)])]
    return Examiner(prompts, teacher, max_new_tokens=16, graded=False, tolerance_nats=1.0, **options)


def test_figures_are_means_over_seeds_with_their_spread() -> None:
    teacher, student = Recording(), Recording()
    examiner = examiner_of(teacher, seeds=[5, 7, 6])
    figures = asyncio.run(examiner.examine(student, student))
    asyncio.run(examiner.examine(student, student))
    assert student.asked == [(5, None), (7, None), (6, None)] * 2
    assert teacher.asked == [(5, None), (7, None), (6, None)], "its samples serve every student"
    assert figures["length_mean_tokens"] == pytest.approx((4 + 5 + 4.5) / 3)
    assert figures["length_mean_tokens_sd"] == pytest.approx(0.5)
    assert "reverse_kl_se" in figures and "reverse_kl_se_sd" not in figures
    taught = asyncio.run(examiner.examine_teacher())
    assert taught["length_mean_tokens_sd"] == pytest.approx(0.5) and taught["exposure_bias"] == 0
    assert over_seeds([{"a": 1.0, "a_se": 0.5}]) == {"a": 1.0, "a_se": 0.5}


def test_blocked_answers_are_others_than_those_of_the_divergences() -> None:
    teacher, student = Recording(), Recording()
    examiner = examiner_of(teacher, seeds=[5], no_repeat_ngram_size=6)
    figures = asyncio.run(examiner.examine(student, student))
    assert student.asked == [(5, None), (5, 6)] and teacher.asked == [(5, None)]
    assert figures["length_mean_tokens"] == 6 and figures["reverse_kl_per_sequence"] == 2.0 * 4
    assert asyncio.run(examiner.examine_teacher())["length_mean_tokens"] == 6
    assert teacher.asked == [(5, None), (5, 6)]


def test_table_shows_spread_questions_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        {
            "teacher": {"rouge_l": 20.0, "rouge_l_se": 1.0, "exposure_bias": 0.0, "sst2_accuracy": 0.9, "sst2_ece": 0.05},
            "student": {"rouge_l": 10.0, "rouge_l_se": 1.0, "rouge_l_sd": 0.25, "distinct_4": 0.75, "training": {"steps": 3}},
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert "ROUGE-L" in lines[1] and "sst2 ECE" in lines[1] and "training" not in lines[1]
    assert lines[3].split() == ["teacher", "20.000", "±", "1.000", "0.0", "–", "0.900", "0.050"]
    assert lines[4].split() == ["student", "10.000", "±", "0.250", "–", "0.750", "–", "–"]
    assert "± standard deviation over seeds" in " ".join(" ".join(lines).split())
