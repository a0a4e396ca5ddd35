"""Figures of text and of divergence, against naive computations."""

import asyncio
import doctest
import math
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

import minidist.evaluation.text as text_module
from minidist.evaluation import divergence
from minidist.evaluation.student import Examiner
from minidist.evaluation.text import accuracy, describe_text, repetition, rouge_l
from minidist.types import Detail, Finish, Measures, Prompt, Rollout, Stream, TeacherScores
from tests.tiny import random_rollouts


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


def test_docstring_examples() -> None:
    done = doctest.testmod(text_module)
    assert done.attempted > 0
    assert done.failed == 0


def test_describe_text() -> None:
    rollouts = random_rollouts([(2, 4), (9, 2)])
    rollouts[0] = Rollout(rollouts[0].prompt, rollouts[0].tokens, rollouts[0].logprobs, rollouts[0].versions, Finish.STOP)
    assert describe_text(rollouts) == {"length_mean_tokens": 3.0, "truncated_frac": 0.5, "repetition_frac": 0.0}


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
        return [TeacherScores(Detail.SAMPLED, logprobs=np.zeros(len(rollout.tokens))) for rollout in rollouts]

    async def extend(self, prompts: list[Prompt], **options: Any) -> list[Rollout]:
        self.written += len(prompts)
        return random_rollouts([(2, 3), (4, 5)])

    generate = extend


@pytest.mark.parametrize("exact", [True, False])
def test_divergences_are_left_out_where_the_payload_does_not_hold_them(exact: bool) -> None:
    rollouts = random_rollouts([(2, 3), (4, 5)])
    teacher, student, options = Measuring(exact), Measuring(exact), {"max_new_tokens": 5, "seed": 0, "graded": False}
    examiner = Examiner([rollout.prompt for rollout in rollouts], teacher, tolerance_nats=1.0, **options)
    figures = asyncio.run(examiner.examine(student, student))
    assert {name: figures.get(name) for name in ("reverse_kl", "forward_kl")} == (
        {"reverse_kl": 2.0, "forward_kl": 3.0} if exact else {"reverse_kl": None, "forward_kl": None}
    )
    assert figures["length_mean_tokens"] == 4.0
    assert teacher.written == (2 if exact else 0), "samples of the teacher that would measure nothing"
