"""Divergence between student and teacher, from per-token figures to means with standard errors."""

import numpy as np

from minidist.evaluation.text import mean_with_error
from minidist.types import Array, Measures


def reverse(measures: Measures) -> dict[str, float]:
    """Reverse KL: mean of the exact KL(student || teacher) per token and per sequence, on the student's own samples.

    Nothing where the teacher's payload does not hold the full vocabulary.
    """
    return {} if measures.reverse_kl is None else _means("reverse_kl", measures.row, measures.reverse_kl)


def forward(measures: Measures) -> dict[str, float]:
    """Forward KL: mean of the exact KL(teacher || student) per token and per sequence, on the teacher's samples.

    Nothing where the teacher's payload does not hold the full vocabulary.
    """
    return {} if measures.forward_kl is None else _means("forward_kl", measures.row, measures.forward_kl)


def exposure_bias(own: Measures, taught: Measures, limit: int) -> dict[str, float]:
    """Excess accumulated error of the student on its own text over that on the teacher's, percent:

        ExAccErr(l) = 100 (R(l) - E(l)) / E(l),    R(l) = mean over sequences of sum over t < l of KL(teacher || student) at t,

    R over the student's samples (`own`), E over the teacher's (`taught`); t = 0 is the first token of the answer. A sequence
    shorter than l has all its tokens in the sum and adds nothing more. At l = 16, 32, ... and `limit`, the longest an answer
    may be, as `exposure_bias_at_<l>`; the last is `exposure_bias`. 0 where both errors are nothing but rounding; nothing at
    all without exact divergences.

    Source: Arora et al., arXiv:2204.01171; Gu et al., arXiv:2306.08543, appendix B.5.
    """
    if own.forward_kl is None or taught.forward_kl is None:
        return {}
    ours, theirs = _accumulated(own.row, own.forward_kl, limit), _accumulated(taught.row, taught.forward_kl, limit)
    lengths = [*range(_CURVE, limit, _CURVE), limit]
    curve = {f"exposure_bias_at_{length}": _excess(ours[length - 1], theirs[length - 1], length) for length in lengths}
    return {"exposure_bias": curve[f"exposure_bias_at_{limit}"]} | curve


_CURVE = 16  # tokens between the points of the curve
_ROUNDING = 1e-6  # nats a token that a model diverges from itself in float32


def _accumulated(rows: Array, values: Array, limit: int) -> Array:
    """[limit] sums of the first 1, 2, ... values of each row, averaged over the rows."""
    starts = np.searchsorted(rows, np.arange(rows[-1] + 1))
    positions = np.arange(len(rows)) - starts[rows]
    return np.bincount(positions, weights=values, minlength=limit).cumsum()[:limit] / len(starts)


def _excess(own: float, taught: float, length: int) -> float:
    floor = _ROUNDING * length
    return 0.0 if max(own, taught) <= floor else float(100 * (own - taught) / max(taught, floor))


def _means(name: str, rows: Array, values: Array) -> dict[str, float]:
    """Token mean (a ratio of sums, its error by linearisation over sequences) and sequence mean, nats."""
    sums, tokens = np.bincount(rows, weights=values), np.bincount(rows).astype(float)
    sequences = len(sums)
    mean = float(sums.sum() / tokens.sum())
    spread = sums - mean * tokens
    correction = sequences / max(1, sequences - 1)
    error = {f"{name}_se": float(np.sqrt(correction * (spread**2).sum()) / tokens.sum())} if sequences > 1 else {}
    return {name: mean} | error | mean_with_error(f"{name}_per_sequence", sums)
