"""Payloads made from tables of likeliest classes."""

import math

import numpy as np
import pytest

from minidist.losses.divergences import EXCLUDED
from minidist.teachers.payload import FLOOR, Malformed, bounded, classes_asked, floored_frac, to_scores
from minidist.types import Payload, TeacherScores, Vocabulary
from tests.support.config import teacher_config
from tests.support.server import PADDED
from tests.support.tiny import VOCABULARY


def test_k_classes_remain_after_padded_ids_are_dropped() -> None:
    ids, values = np.array([[14, 2, 13, 5, 1, 15]]), np.array([[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]])
    settings = teacher_config(model="x", backend="vllm", payload="top_k", top_k=3)
    assert classes_asked(settings, PADDED, VOCABULARY) == 6
    found = to_scores(np.array([-2.0]), ids, values, settings, VOCABULARY)
    assert found.top_ids is not None and found.top_ids.tolist() == [[2, 5, 1]]
    assert found.top_logprobs is not None and found.top_logprobs.tolist() == [[-2.0, -4.0, -5.0]]


@pytest.mark.parametrize("value", [-math.inf, -9999.0, -999999999.0, -104.0])
def test_a_log_probability_below_that_of_the_least_number_counts_as_that_number(value: float) -> None:
    assert np.float32(EXCLUDED) == FLOOR
    assert bounded(np.array([-1.0, value, -103.0])).tolist() == [-1.0, float(FLOOR), -103.0]
    scores = TeacherScores(Payload.SAMPLED, logprobs=bounded(np.array([-1.0, value, -103.0, -2.0])))
    assert floored_frac([scores, scores]) == 0.25 and floored_frac([TeacherScores(Payload.HIDDEN)]) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5, 1e30])
def test_what_is_no_log_probability_is_refused(value: float) -> None:
    with pytest.raises(Malformed, match=r"gives a token the log-probability .*; expected a number of at most 0"):
        bounded(np.array([-1.0, value]))


def test_rounding_above_0_counts_as_0() -> None:
    assert bounded(np.array([1e-6, 0.01])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("ids", "values", "found"),
    [
        ([3, 3], [-1.0, -2.0], "twice"),
        ([3, 4], [-2.0, -1.0], "not in falling order"),
        ([3, 4], [-0.1, -0.2], "add up to more than 1"),
        ([3, 4], [-0.1, math.nan], "nan"),
    ],
)
def test_lists_that_no_model_gives_are_refused(ids: list[int], values: list[float], found: str) -> None:
    settings = teacher_config(model="x", backend="vllm", payload="top_k", top_k=2)
    with pytest.raises(Malformed, match=found):
        to_scores(np.array([-1.0]), np.array([ids]), np.array([values]), settings, None)


def test_absent_ids_are_dropped_like_padded_ones() -> None:
    ids, values = np.array([[14, 2, 13, 5, 1, 15]]), np.array([[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]])
    settings = teacher_config(model="x", backend="vllm", payload="top_k", top_k=2)
    assert classes_asked(settings, PADDED, Vocabulary(VOCABULARY, [2])) == 6
    found = to_scores(np.array([-2.0]), ids, values, settings, Vocabulary(VOCABULARY, [2]))
    assert found.top_ids is not None and found.top_ids.tolist() == [[5, 1]]
