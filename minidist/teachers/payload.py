"""Payloads of teachers that return tables of their likeliest classes, as vLLM does, instead of hidden states."""

import numpy as np

from minidist.config.teacher import TeacherConfig
from minidist.types import Array, Payload, TeacherScores


def classes_asked(config: TeacherConfig, width: int, vocabulary: int | None) -> int:
    """Number of classes to request at each position, so that `top_k` remain after padded ids are dropped.

    width: classes of the teacher's softmax. vocabulary: ids from this one on are padding; None: no id is.
    """
    if config.payload != "top_k":
        return 0
    padded = max(0, width - (vocabulary or width))
    return min(config.top_k + padded, width)


def to_scores(logprobs: Array, ids: Array, values: Array, config: TeacherConfig, vocabulary: int | None) -> TeacherScores:
    """Scores of T tokens from their `logprobs` [T] and the likeliest classes: `ids` and `values` [T, C], in falling order.

    Padded ids are dropped, since the student has no such ids; their probability becomes part of the tail.
    """
    token_logprobs = np.ascontiguousarray(logprobs, dtype=np.float32)
    if config.payload == "sampled":
        return TeacherScores(Payload.SAMPLED, logprobs=token_logprobs)
    count = min(config.top_k, ids.shape[1] if vocabulary is None else vocabulary)
    if vocabulary is not None and (ids >= vocabulary).any():
        order = np.argsort(ids >= vocabulary, axis=1, kind="stable")  # real ids first, in unchanged order
        ids, values = np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
    top_ids = np.ascontiguousarray(ids[:, :count], dtype=np.int32)
    top_logprobs = np.ascontiguousarray(values[:, :count], dtype=np.float32)
    return TeacherScores(Payload.TOP_K, logprobs=token_logprobs, top_ids=top_ids, top_logprobs=top_logprobs)
