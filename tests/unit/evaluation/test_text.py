"""Figures of generated text, against naive computations."""

import doctest
import math
from dataclasses import replace

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

import minidist.evaluation.text as module
from minidist.evaluation.text import accuracy, describe_text, distinct, repetition, rouge_l
from minidist.types import Finish, Prompt, Rollout
from tests.support.tiny import random_rollouts


def answered(pairs: list[tuple[str, str]]) -> list[Rollout]:
    """Rollouts of (answer, gold answer)."""
    none = np.zeros(1, dtype=np.int32)
    return [
        Rollout(Prompt(row, none, "?", gold), none, none, none, Finish.STOP, 0, answer)
        for row, (answer, gold) in enumerate(pairs)
    ]


def test_repetition_is_the_share_of_4_grams_that_occurred_earlier_in_their_text() -> None:
    assert repetition([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(1 / 5)
    assert repetition([[7] * 8]) == pytest.approx(4 / 5)
    assert repetition([[1, 2, 3, 4, 5]]) == 0
    assert repetition([[1, 2, 3]]) == 0
    assert repetition([]) == 0
    assert repetition([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0, "the same text twice does not repeat itself"
    assert repetition([[7] * 8, [1, 2, 3, 4, 5, 6, 7, 8]]) == pytest.approx(4 / 10)


def test_distinct_is_the_share_of_different_4_grams_over_all_texts() -> None:
    assert distinct([[1, 2, 3, 4, 1, 2, 3, 4]]) == 4 / 5, "as many as are not repeated, in one text"
    assert distinct([[1, 2, 3, 4], [1, 2, 3, 4]]) == 1 / 2, "the same text twice"
    assert distinct([[1, 2, 3, 4, 5], [2, 3, 4, 5, 6], [7] * 5]) == 4 / 6
    assert distinct([[1, 2, 3], []]) == 1
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 3, 30).tolist() for _ in range(5)]
    naive = [tuple(text[start + shift] for shift in range(4)) for text in texts for start in range(27)]
    assert distinct(texts) == len(set(naive)) / 135


def test_text_is_described_by_length_truncation_repetition_and_diversity() -> None:
    rollouts = random_rollouts([(2, 4), (9, 2)])
    rollouts[0] = Rollout(rollouts[0].prompt, rollouts[0].tokens, rollouts[0].logprobs, rollouts[0].versions, Finish.STOP)
    wanted = {"length_mean_tokens": 3.0, "truncated_frac": 0.5, "repetition_frac": 0.0, "distinct_4": 1.0}
    assert describe_text(rollouts) == wanted


def test_accuracy_and_its_error() -> None:
    figure = accuracy(answered([("1", "1"), (" 2\n", "2"), ("3", "4"), ("", "5")]))
    assert figure.mean == 0.5
    assert figure.error == pytest.approx(math.sqrt(4 * 0.25 / 3) / math.sqrt(4))


def test_rouge_l_is_that_of_the_package() -> None:
    pairs = [("the cats sat on a mat", "the cat sat on the mat"), ("no", "yes indeed"), ("all of it", "all of it")]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    values = [100 * scorer.score(gold, answer)["rougeL"].fmeasure for answer, gold in pairs]
    figure = rouge_l(answered(pairs))
    assert values[0] == pytest.approx(100 * 5 / 6), "stemmed: cats is cat"
    assert values[1:] == [0, 100]
    assert figure.mean == pytest.approx(sum(values) / 3)
    spread = sum((value - sum(values) / 3) ** 2 for value in values) / 2
    assert figure.error == pytest.approx(math.sqrt(spread / 3))


def with_references(rollout: Rollout, *references: str) -> Rollout:
    return replace(rollout, prompt=replace(rollout.prompt, answer=references[0], references=references))


def test_the_best_matching_gold_answer_counts() -> None:
    answers = answered([("the cats sat", ""), ("it is red", ""), ("7", "")])
    golds = [("a dog ran", "the cat sat down", "the"), ("red", "blue"), ("3", "7")]
    rollouts = [with_references(rollout, *gold) for rollout, gold in zip(answers, golds, strict=True)]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    best = [scorer.score_multi(list(gold), r.text)["rougeL"].fmeasure for r, gold in zip(rollouts, golds, strict=True)]
    assert best[0] == pytest.approx(6 / 7), "three stems of three and of four"
    assert best[1] == pytest.approx(1 / 2)
    assert rouge_l(rollouts).mean == pytest.approx(100 * sum(best) / 3)
    assert accuracy(rollouts).mean == pytest.approx(1 / 3)


def test_docstring_examples() -> None:
    done = doctest.testmod(module)
    assert done.attempted > 0 and done.failed == 0
