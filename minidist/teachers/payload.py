"""Payloads of teachers that return tables of their likeliest classes, as vLLM does, instead of hidden states.

One rule for every log-probability: below FLOOR, the least that float32 can hold as a probability, -inf and the -9999 of servers
included, it counts as FLOOR, and the run counts such tokens (`teacher/floored_frac`); above 0 by rounding it counts as 0; NaN,
+inf and anything further above 0 are refused.
"""

import math
from collections.abc import Sequence

import numpy as np

from minidist.config.teacher import TeacherConfig
from minidist.errors import RoleError
from minidist.types import Array, Payload, Scores, TeacherScores, Vocabulary

FLOOR = np.float32(math.log(2.0**-149))
"""That of losses.divergences.EXCLUDED, nats."""
ROUNDING = 0.02
"""Rounding of a log-probability and of a sum of probabilities in 16 bits, nats."""


class Malformed(RoleError):
    """An answer of a teacher that holds no usable scores or text."""


def classes_asked(config: TeacherConfig, width: int, vocabulary: int | None) -> int:
    """Number of classes to request at each position, so that `top_k` remain after padded ids are dropped.

    width: classes of the teacher's softmax. vocabulary: the shared ids; None: all are.
    """
    if config.payload != "top_k":
        return 0
    padded = 0 if vocabulary is None else max(0, width - Vocabulary.of(vocabulary).count)
    return min(config.top_k + padded, width)


def bounded(logprobs: Array) -> Array:
    """Log-probabilities between FLOOR and 0, as float32. Raises Malformed for numbers that are none.

    >>> bounded(np.array([-1.0, -np.inf, 1e-6]))
    array([  -1.     , -103.27893,    0.     ], dtype=float32)
    """
    wrong = ~(logprobs <= ROUNDING)
    if wrong.any():
        raise Malformed(f"the teacher gives a token the log-probability {logprobs[wrong][0]}; expected a number of at most 0")
    return np.clip(logprobs, FLOOR, 0).astype(np.float32)


def to_scores(logprobs: Array, ids: Array, values: Array, config: TeacherConfig, vocabulary: int | None) -> TeacherScores:
    """Scores of T tokens from their `logprobs` [T] and the likeliest classes: `ids` and `values` [T, C], in falling order.

    Ids that are not shared are dropped, since the student has no such ids; their probability becomes part of the tail. Raises
    Malformed for numbers and lists that no model gives.
    """
    token_logprobs = bounded(logprobs)
    if config.payload == "sampled":
        return TeacherScores(Payload.SAMPLED, logprobs=token_logprobs)
    values = bounded(values)
    _check_lists(ids, values)
    count = min(config.top_k, ids.shape[1] if vocabulary is None else Vocabulary.of(vocabulary).count)
    unshared = None if vocabulary is None else (ids >= vocabulary) | np.isin(ids, Vocabulary.of(vocabulary).absent)
    if unshared is not None and unshared.any():
        order = np.argsort(unshared, axis=1, kind="stable")  # shared ids first, in unchanged order
        ids, values = np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
    top_ids = np.ascontiguousarray(ids[:, :count], dtype=np.int32)
    top_logprobs = np.ascontiguousarray(values[:, :count])
    return TeacherScores(Payload.TOP_K, logprobs=token_logprobs, top_ids=top_ids, top_logprobs=top_logprobs)


def floored_frac(scores: Sequence[Scores]) -> float | None:
    """Share of the scored tokens whose log-probability is FLOOR; None without log-probabilities, as of hidden states."""
    known = [each.logprobs for each in scores if each.logprobs is not None]
    logprobs = np.concatenate(known) if known else np.empty(0)
    return float((logprobs <= FLOOR).mean()) if len(logprobs) else None


def _check_lists(ids: Array, values: Array) -> None:
    """Raise Malformed unless each list of likeliest classes falls, names a class once, and has at most the probability 1."""
    if (np.diff(np.sort(ids, axis=1), axis=1) == 0).any():
        raise Malformed("the teacher lists a token twice among the likeliest of a position")
    if (np.diff(values, axis=1) > 0).any():
        raise Malformed("the teacher's list of the likeliest tokens of a position is not in falling order")
    if (np.exp(values, dtype=np.float64).sum(axis=1) > 1 + ROUNDING).any():
        raise Malformed("the probabilities of the likeliest tokens of a position add up to more than 1")
