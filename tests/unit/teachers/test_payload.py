"""Payloads made from tables of likeliest classes."""

import numpy as np

from minidist.teachers.payload import classes_asked, to_scores
from minidist.types import Vocabulary
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


def test_absent_ids_are_dropped_like_padded_ones() -> None:
    ids, values = np.array([[14, 2, 13, 5, 1, 15]]), np.array([[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]])
    settings = teacher_config(model="x", backend="vllm", payload="top_k", top_k=2)
    assert classes_asked(settings, PADDED, Vocabulary(VOCABULARY, [2])) == 6
    found = to_scores(np.array([-2.0]), ids, values, settings, Vocabulary(VOCABULARY, [2]))
    assert found.top_ids is not None and found.top_ids.tolist() == [[5, 1]]
