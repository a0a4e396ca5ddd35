"""Divergence between student and teacher, from per-token figures to means with standard errors."""

from collections.abc import Sequence

import numpy as np

from minidist.evaluation.figures import Figure, Figures
from minidist.types import Array, Measures, Rollout


def reverse(measures: Measures) -> Figures:
    """Reverse KL: mean of the exact KL(student || teacher) per token and per sequence, on the student's own samples.

    Empty where the payload of the teacher, or of any of several, does not hold the full vocabulary.
    """
    return {} if (values := _known(measures.reverse_kl)) is None else _means("reverse_kl", measures.row, values)


def forward(measures: Measures) -> Figures:
    """Forward KL: mean of the exact KL(teacher || student) per token and per sequence, on the teacher's samples.

    Empty where the payload of the teacher, or of any of several, does not hold the full vocabulary.
    """
    return {} if (values := _known(measures.forward_kl)) is None else _means("forward_kl", measures.row, values)


def _known(values: Array | None) -> Array | None:
    """The divergences of all tokens; None where the payload of any of their teachers does not give them."""
    return None if values is None or np.isnan(values).any() else values


def by_teacher(measures: Measures, rollouts: Sequence[Rollout]) -> dict[str, Measures]:
    """The figures of the rows of each of several teachers, rows counted anew; none with one teacher."""
    names = np.array([rollout.prompt.teacher for rollout in rollouts])
    return {str(name): _of_rows(measures, np.flatnonzero(names == name)) for name in np.unique(names) if name}


def _of_rows(measures: Measures, rows: Array) -> Measures:
    chosen = np.isin(measures.row, rows)
    columns = {name: values for name, values in vars(measures).items() if values is not None and name != "row"}
    row = np.searchsorted(rows, measures.row[chosen]).astype(measures.row.dtype)
    return Measures(row, **{name: values[chosen] for name, values in columns.items()})


def exposure_bias(student: Measures, teacher: Measures, limit: int) -> Figures:
    """Excess accumulated error of the student on its own samples over that on the teacher's samples, percent:

        ExAccErr(l) = 100 (R(l) - E(l)) / E(l),    R(l) = mean over sequences of sum over t < l of KL(teacher || student) at t,

    R over the samples of `student`, E over those of `teacher`; t = 0 is the first token of the answer. A sequence shorter than
    l contributes all its tokens. The value is that at `limit`, the longest answer allowed, tokens; its curve has the points
    l = 16, 32, ... and `limit`. 0 where both errors are rounding alone; empty without exact divergences.

    Source: Arora et al., arXiv:2204.01171; Gu et al., arXiv:2306.08543, appendix B.5.
    """
    if (of_student := _known(student.forward_kl)) is None or (of_teacher := _known(teacher.forward_kl)) is None:
        return {}
    student_error = _accumulated(student.row, of_student, limit)
    teacher_error = _accumulated(teacher.row, of_teacher, limit)
    lengths = [*range(_STRIDE, limit, _STRIDE), limit]
    curve = {length: _excess(student_error[length - 1], teacher_error[length - 1], length) for length in lengths}
    return {"exposure_bias": Figure(curve[limit], curve=curve)}


_STRIDE = 16  # tokens between the points of the curve
_ROUNDING = 1e-6  # nats a token by which a model diverges from itself in float32


def _accumulated(rows: Array, values: Array, limit: int) -> Array:
    """Sums of the first 1, 2, ... `limit` values of each row, averaged over the rows: [limit]."""
    starts = np.searchsorted(rows, np.arange(rows[-1] + 1))
    positions = np.arange(len(rows)) - starts[rows]
    return np.bincount(positions, weights=values, minlength=limit).cumsum()[:limit] / len(starts)


def _excess(student_error: float, teacher_error: float, length: int) -> float:
    floor = _ROUNDING * length
    if max(student_error, teacher_error) <= floor:
        return 0.0
    return float(100 * (student_error - teacher_error) / max(teacher_error, floor))


def _means(name: str, rows: Array, values: Array) -> Figures:
    """Token mean (a ratio of sums, its error and its parts by linearisation over sequences) and sequence mean, nats."""
    sums, tokens = np.bincount(rows, weights=values), np.bincount(rows).astype(float)
    sequences = len(sums)
    mean = float(sums.sum() / tokens.sum())
    residuals = sums - mean * tokens
    correction = sequences / max(1, sequences - 1)
    error = float(np.sqrt(correction * (residuals**2).sum()) / tokens.sum()) if sequences > 1 else None
    parts = mean + residuals * sequences / tokens.sum()
    return {name: Figure(mean, error, parts=parts), f"{name}_per_sequence": Figure.of_samples(sums)}
