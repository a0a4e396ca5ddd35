"""Silent errors made loud: numbers that must agree are compared, before a run and during it."""

import math
from collections.abc import Sequence

import numpy as np

from minidist.errors import CanaryError
from minidist.types import Array, Measures, Rollout, Writer


def check_engine(measures: Measures, rollouts: Sequence[Rollout], tolerance_nats: float) -> float | None:
    """Mean difference between the engine's log-probabilities of its samples and the learner's of the same tokens, nats.

    Tokens that the student did not choose do not count; `measures` are of all. None: it chose none.
    """
    own = [_own(rollout) for rollout in rollouts]
    said = [rollout.logprobs[mask] for rollout, mask in zip(rollouts, own, strict=True) if rollout.logprobs is not None]
    if not (chosen := np.concatenate(own)).any():
        return None
    differences = np.abs(np.concatenate(said).astype(np.float64) - measures.student_logprob[chosen])
    mean, worst = float(differences.mean()), float(differences.max())
    if not mean <= tolerance_nats:
        raise CanaryError(
            f"engine and learner disagree: the log-probabilities of the same tokens differ by {mean:.3g} nats in the mean "
            f"({worst:.3g} at most), more than {tolerance_nats:g}; weights, precision or the label shift are not the same"
        )
    return mean


def _own(rollout: Rollout) -> Array:
    """Which tokens the student chose, and the engine gave a log-probability of [T] bool."""
    if rollout.writer is not Writer.STUDENT or rollout.logprobs is None:
        return np.zeros(len(rollout.tokens), dtype=bool)
    return np.ones(len(rollout.tokens), dtype=bool) if rollout.coins is None else ~rollout.coins


def check_teacher(measures: Measures, vocabulary: int, margin: float) -> float | None:
    """The teacher's mean log-probability; a CanaryError if it is that of a uniform guess over the vocabulary."""
    if measures.teacher_logprob is None:
        return None
    mean, uniform = float(measures.teacher_logprob.mean()), -math.log(vocabulary)
    if not math.isfinite(mean):
        raise CanaryError(f"the teacher's mean log-probability is {mean}: its weights or its scores are broken")
    # A guess that is uniform but for noise of variance v has a mean of -ln V - v / 2. On the text of a poor student a trained
    # teacher may come to that mean too, but not with so little spread.
    noisy = float(measures.teacher_logprob.var()) / 2 > 2 * margin * abs(uniform)
    if abs(mean - uniform) <= margin * abs(uniform) and not noisy:
        raise CanaryError(
            f"the teacher's mean log-probability is {mean:.3f} nats, a uniform guess over {vocabulary} tokens is "
            f"{uniform:.3f}: the teacher is untrained, or its weights or head were not loaded"
        )
    return mean
