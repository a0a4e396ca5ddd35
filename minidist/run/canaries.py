"""Canaries: numbers of a run that must agree are compared, and a run whose numbers are wrong stops."""

import math
from collections.abc import Sequence

import numpy as np

from minidist.errors import CanaryError
from minidist.types import Array, Measures, Rollout, Vocabulary, Writer


def check_engine(measures: Measures, rollouts: Sequence[Rollout], tolerance_nats: float) -> float | None:
    """Mean difference between the engine's log-probabilities of its samples and the learner's of the same tokens, nats.

    Only tokens that the student chose count; `measures` has all tokens of the rollouts, under the distribution that they were
    sampled from (`Sampling.processed`). None where the student chose none.
    Raises CanaryError when the difference exceeds `tolerance_nats`.
    """
    masks = [_chosen_by_student(rollout) for rollout in rollouts]
    sampled = zip(rollouts, masks, strict=True)
    engine_logprobs = [rollout.logprobs[mask] for rollout, mask in sampled if rollout.logprobs is not None]
    if not (chosen := np.concatenate(masks)).any():
        return None
    differences = np.abs(np.concatenate(engine_logprobs).astype(np.float64) - measures.student_logprob[chosen])
    mean, worst = float(differences.mean()), float(differences.max())
    if not mean <= tolerance_nats:
        found = f"their log-probabilities of the same tokens differ by {mean:.3g} nats on average ({worst:.3g} at most)"
        remedy = "check weights, precision, temperature, top_p and the shift of the labels"
        raise CanaryError(f"engine and learner disagree: {found}, more than {tolerance_nats:g}; {remedy}")
    return mean


def _chosen_by_student(rollout: Rollout) -> Array:
    """Which tokens the student chose and the engine has a log-probability of: [T] bool."""
    if rollout.writer is not Writer.STUDENT or rollout.logprobs is None:
        return np.zeros(len(rollout.tokens), dtype=bool)
    return np.ones(len(rollout.tokens), dtype=bool) if rollout.coins is None else ~rollout.coins


def age_of(rollouts: Sequence[Rollout], taken: int) -> int | None:
    """Optimizer steps since the weights that wrote the oldest token that was sampled for this step, after `taken` of them;
    None where the student wrote nothing anew. Replayed text, which has no log-probabilities any more, does not count."""
    new = [each for each in rollouts if each.writer is Writer.STUDENT and each.logprobs is not None and len(each.versions)]
    return taken - min(int(each.versions.min()) for each in new) if new else None


def check_age(age: int | None, most: int) -> None:
    """Raise CanaryError when text is of weights that are not among the last ones that loop.max_staleness allows; `most` is in
    optimizer steps."""
    if age is not None and not 0 <= age <= most:
        raise CanaryError(
            f"a token was written with the weights of {age} optimizer steps ago, and loop.max_staleness allows {most}; the "
            "order of writing and publishing is broken"
        )


def check_floored(share: float | None, limit: float) -> None:
    """Raise CanaryError when the share of scored tokens that have no probability under the teacher exceeds `limit`."""
    if share is not None and share > limit:
        found = f"{share:.1%} of the scored tokens have a log-probability below ln 2^-149"
        remedy = "let the teacher's server report untruncated log-probabilities of the student's vocabulary"
        raise CanaryError(
            f"the teacher gives tokens no probability: {found}, more than canaries.floored_frac={limit:g}; {remedy}"
        )


def check_teacher(measures: Measures, vocabulary: int, margin: float) -> float | None:
    """The teacher's mean log-probability, nats; None where `measures` has none of a teacher.

    Raises CanaryError when the mean is not finite, or within the share `margin` of a uniform guess over the vocabulary.
    """
    if measures.teacher_logprob is None:
        return None
    mean, uniform = float(measures.teacher_logprob.mean()), -math.log(Vocabulary.of(vocabulary).count)
    if not math.isfinite(mean):
        raise CanaryError(f"the teacher's mean log-probability is {mean}: its weights or its scores are broken")
    # A uniform guess with noise of variance v has a mean of -ln V - v / 2. On the text of a poor student a trained teacher may
    # have that mean too, but not with so little spread.
    noisy = float(measures.teacher_logprob.var()) / 2 > 2 * margin * abs(uniform)
    if abs(mean - uniform) <= margin * abs(uniform) and not noisy:
        found = f"{mean:.3f} nats, a uniform guess over {Vocabulary.of(vocabulary).count} tokens is {uniform:.3f}"
        cause = "the teacher is untrained, or its weights or head were not loaded"
        raise CanaryError(f"the teacher's mean log-probability is {found}: {cause}")
    return mean
