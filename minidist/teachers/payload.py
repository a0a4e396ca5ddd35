"""Payloads of teachers that return tables of their likeliest classes, as vLLM does, instead of hidden states."""

import numpy as np

from minidist.config.teacher import TeacherConfig
from minidist.types import Array, Payload, TeacherScores, Vocabulary


def classes_asked(config: TeacherConfig, width: int, vocabulary: int | None) -> int:
    """Number of classes to request at each position, so that `top_k` remain after padded ids are dropped.

    width: classes of the teacher's softmax. vocabulary: the shared ids; None: all are.
    """
    if config.payload != "top_k":
        return 0
    padded = 0 if vocabulary is None else max(0, width - Vocabulary.of(vocabulary).count)
    return min(config.top_k + padded, width)


def to_scores(logprobs: Array, ids: Array, values: Array, config: TeacherConfig, vocabulary: int | None) -> TeacherScores:
    """Scores of T tokens from their `logprobs` [T] and the likeliest classes: `ids` and `values` [T, C], in falling order.

    Ids that are not shared are dropped, since the student has no such ids; their probability becomes part of the tail.
    """
    token_logprobs = np.ascontiguousarray(logprobs, dtype=np.float32)
    if config.payload == "sampled":
        return TeacherScores(Payload.SAMPLED, logprobs=token_logprobs)
    count = min(config.top_k, ids.shape[1] if vocabulary is None else Vocabulary.of(vocabulary).count)
    unshared = None if vocabulary is None else (ids >= vocabulary) | np.isin(ids, Vocabulary.of(vocabulary).absent)
    if unshared is not None and unshared.any():
        order = np.argsort(unshared, axis=1, kind="stable")  # shared ids first, in unchanged order
        ids, values = np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
    top_ids = np.ascontiguousarray(ids[:, :count], dtype=np.int32)
    top_logprobs = np.ascontiguousarray(values[:, :count], dtype=np.float32)
    return TeacherScores(Payload.TOP_K, logprobs=token_logprobs, top_ids=top_ids, top_logprobs=top_logprobs)
