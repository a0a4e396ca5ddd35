"""Figures of a model: a mean with its standard error or its spread, and how records hold them as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidist.types import Array

_SPREAD, _ERROR, _CURVE = "_sd", "_se", "_curve"


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Args:
        mean: the value itself.
        error: its standard error, how it varies with the prompts; None where it is unknown.
        spread: standard deviation of the value over repeats (sampling seeds, or runs); None for a single measurement.
        curve: the value when only so many tokens of each answer are counted, where it is measured as a curve.
        parts: the value of each prompt, [P], whose mean is `mean`; None where the figure is not a mean over prompts.
    """

    mean: float
    error: float | None = None
    spread: float | None = None
    curve: Mapping[int, float] = field(default_factory=dict)
    parts: Array | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of_samples(cls, values: Array) -> "Figure":
        """Mean of independent values and, from two values on, its standard error."""
        error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
        return cls(float(values.mean()), error, parts=values)

    @classmethod
    def of_repeats(cls, means: Sequence[float]) -> "Figure":
        """Mean of repeated measurements and, from two repeats on, their standard deviation."""
        values = np.array(means, float)
        return cls(float(values.mean()), spread=float(values.std(ddof=1)) if len(values) > 1 else None)


Figures = dict[str, Figure]


def over_seeds(rounds: Sequence[Figures]) -> Figures:
    """Means of the figures of several sampling seeds, with their spread.

    A standard error is still that of one seed: it says how a figure varies with the prompts, the spread how it varies with the
    samples.
    """
    return {name: _over_seeds([figures[name] for figures in rounds]) for name in rounds[0]}


def _over_seeds(seeds: Sequence[Figure]) -> Figure:
    mean = Figure.of_repeats([figure.mean for figure in seeds])
    errors = [figure.error for figure in seeds if figure.error is not None]
    curve = {at: float(np.mean([figure.curve[at] for figure in seeds])) for at in seeds[0].curve}
    parts = [figure.parts for figure in seeds if figure.parts is not None]
    of_prompts = np.mean(parts, axis=0) if len(parts) == len(seeds) else None
    return Figure(mean.mean, float(np.mean(errors)) if errors else None, mean.spread, curve, of_prompts)


def to_record(figures: Mapping[str, Figure]) -> dict[str, float]:
    """Figures as metrics and records hold them: `<name>`, its spread `<name>_sd`, its standard error `<name>_se`."""
    record: dict[str, float] = {}
    for name, figure in figures.items():
        values = {name: figure.mean, name + _SPREAD: figure.spread, name + _ERROR: figure.error}
        record |= {key: value for key, value in values.items() if value is not None}
    return record


def curves(figures: Mapping[str, Figure]) -> dict[str, dict[str, float]]:
    """Curves as result.json holds them: `<name>_curve`, of tokens to values."""
    measured = ((name, figure.curve) for name, figure in figures.items() if figure.curve)
    return {name + _CURVE: {str(tokens): value for tokens, value in curve.items()} for name, curve in measured}


def from_record(record: Mapping[str, Any]) -> Figures:
    """The figures of a record, without their curves. Entries that are no floating-point numbers are not figures."""
    return {
        name: Figure(value, record.get(name + _ERROR), record.get(name + _SPREAD))
        for name, value in record.items()
        if isinstance(value, float) and not name.endswith((_SPREAD, _ERROR))
    }


def of_prompts(figures: Mapping[str, Figure]) -> dict[str, list[float]]:
    """The value of each prompt, of each figure that is a mean over prompts."""
    return {name: figure.parts.tolist() for name, figure in figures.items() if figure.parts is not None}


def one_line(figures: Mapping[str, Figure]) -> str:
    """All means in one line, for the log."""
    return ", ".join(f"{name} {figure.mean:.4g}" for name, figure in figures.items())
