"""Multiple-choice questions: accuracy and calibration."""

import doctest

import numpy as np
import pytest

import minidist.evaluation.choices as module
from minidist.data.questions import Question
from minidist.data.sources import Example
from minidist.evaluation.choices import calibration_error, choice_figures


def test_calibration_error_by_hand() -> None:
    # Bins (0.5, 0.6]: 0.55 and 0.6, one of two right; (0.9, 1]: 0.95 and 1, both right.
    assert calibration_error([0.55, 0.6, 0.95, 1.0], [True, False, True, True]) == pytest.approx((0.15 + 0.05) / 4)
    assert calibration_error([0.7], [True]) == pytest.approx(0.3)
    # 0.7 ends the bin that 0.65 is in: their errors cancel; 0.71 begins the next.
    assert calibration_error([0.7, 0.65], [True, False]) == pytest.approx(0.35 / 2)
    assert calibration_error([0.71, 0.65], [True, False]) == pytest.approx((0.29 + 0.65) / 2)


def test_calibration_error_against_the_definition() -> None:
    rng = np.random.default_rng(2)
    confidence, right = rng.uniform(0.2, 1, 500), rng.random(500) < 0.6
    naive = 0.0
    for low in range(10):
        inside = (confidence > low / 10) & (confidence <= (low + 1) / 10)
        if inside.any():
            naive += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(confidence.tolist(), right.tolist()) == pytest.approx(naive)


def test_a_choice_has_the_summed_log_probability_of_all_its_tokens() -> None:
    """Two questions of two choices and of three; probabilities of whole choices, normalised over those of a question."""
    sizes = [(2, 1), (1, 3, 1)]
    questions = [
        Question(tuple(Example(np.zeros(4 + size, dtype=np.int32), 4) for size in lengths), right)
        for lengths, right in zip(sizes, (0, 1), strict=True)
    ]
    logprobs = np.log([0.9, 0.4, 0.2, 0.2, 0.5, 0.5, 0.4, 0.1])
    rows = np.array([0, 0, 1, 2, 3, 3, 3, 4])
    figures = choice_figures(questions, rows, logprobs)
    confidence = [0.36 / 0.56, 0.2 / 0.4]
    assert figures["accuracy"].mean == 0.5
    assert figures["ece"].mean == pytest.approx((1 - confidence[0] + confidence[1]) / 2)


def test_docstring_examples() -> None:
    done = doctest.testmod(module)
    assert done.attempted > 0 and done.failed == 0
