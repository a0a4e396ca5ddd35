"""Payloads of teachers whose softmax is out of reach: tables of their likeliest classes, as vLLM gives them."""

import numpy as np

from minidist.config.teacher import TeacherConfig
from minidist.types import Array, Payload, TeacherScores


def classes_asked(config: TeacherConfig, width: int, vocabulary: int | None) -> int:
    """How many classes to ask for at each position, so that `top_k` are left once padded ids are dropped.

    `width` counts the rows of the teacher's softmax; the ids from `vocabulary` on are padding.
    """
    if config.payload != "top_k":
        return 0
    padded = max(0, width - (vocabulary or width))
    return min(config.top_k + padded, width)


def to_scores(logprobs: Array, ids: Array, values: Array, config: TeacherConfig, vocabulary: int | None) -> TeacherScores:
    """Scores of T tokens: their own `logprobs` [T], and the likeliest classes `ids` [T, C] and `values` [T, C], falling.

    Padded ids are dropped, since no student has them: their probability is part of the tail.
    """
    own = np.ascontiguousarray(logprobs, dtype=np.float32)
    if config.payload == "sampled":
        return TeacherScores(Payload.SAMPLED, logprobs=own)
    count = min(config.top_k, ids.shape[1] if vocabulary is None else vocabulary)
    if vocabulary is not None and (ids >= vocabulary).any():
        order = np.argsort(ids >= vocabulary, axis=1, kind="stable")  # real ids first, their order kept
        ids, values = np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
    top_ids = np.ascontiguousarray(ids[:, :count], dtype=np.int32)
    top_logprobs = np.ascontiguousarray(values[:, :count], dtype=np.float32)
    return TeacherScores(Payload.TOP_K, logprobs=own, top_ids=top_ids, top_logprobs=top_logprobs)
