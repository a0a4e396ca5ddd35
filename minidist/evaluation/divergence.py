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


def _means(name: str, rows: Array, values: Array) -> dict[str, float]:
    """Token mean (a ratio of sums, its error by linearisation over sequences) and sequence mean, nats."""
    sums, tokens = np.bincount(rows, weights=values), np.bincount(rows).astype(float)
    sequences = len(sums)
    mean = float(sums.sum() / tokens.sum())
    spread = sums - mean * tokens
    correction = sequences / max(1, sequences - 1)
    error = {f"{name}_se": float(np.sqrt(correction * (spread**2).sum()) / tokens.sum())} if sequences > 1 else {}
    return {name: mean} | error | mean_with_error(f"{name}_per_sequence", sums)
