"""Metrics of runs as curves: read from metrics.jsonl as it grows, joined over seeds, thinned to what a figure can show."""

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from minidist.types import Array

POINTS = 800
"""Points of a curve in a figure: more than a panel has pixels."""

_NAMES = 600
"""Metrics of a run that are read: a file with more has other things in their place."""

_STEPS = 2**53


@dataclass
class Column:
    """One metric: numbers of optimizer steps or of other rounds that had been taken, and values; NaN where one is no number."""

    steps: array = field(default_factory=lambda: array("d"))
    values: array = field(default_factory=lambda: array("d"))

    def curve(self) -> tuple[Array, Array]:
        """Steps, ascending, each once (the value written last counts), and values."""
        steps, values = np.array(self.steps), np.array(self.values)
        if len(steps) > 1 and not (np.diff(steps) > 0).all():
            steps, last = np.unique(steps[::-1], return_index=True)
            values = values[::-1][last]
        return steps, values


class MetricsFile:
    """metrics.jsonl of a run, which may still be written to: its last line may be half a line.

    `columns` has the metrics by name; `problems` the sentences about lines that could not be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start()

    def _start(self) -> None:
        self.columns: dict[str, Column] = {}
        self._offset = 0
        self._bad = 0
        self._first_bad = 0
        self._line = 0
        self._too_many = False
        self._inode = 0

    def read(self) -> None:
        """Read what was added since the last time; all of it where the file was cut or replaced, as when a run resumes."""
        state = self.path.stat()
        if state.st_size < self._offset or state.st_ino != self._inode:
            self._start()
            self._inode = state.st_ino
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):  # being written
                    break
                self._offset += len(line)
                self._line += 1
                self._add(line)

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            step = row.pop("step") + 1
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            step = None
        if not isinstance(step, int) or abs(step) > _STEPS:
            self._bad += 1
            self._first_bad = self._first_bad or self._line
            return
        columns = self.columns
        for name, value in row.items():
            if (column := columns.get(name)) is None:
                if len(columns) >= _NAMES:
                    self._too_many = True
                    continue
                column = columns[name] = Column()
            column.steps.append(step)
            column.values.append(_number(value))

    @property
    def problems(self) -> list[str]:
        found = []
        if self._bad:
            first = f"the first is line {self._first_bad}"
            found.append(f"{self.path}: {self._bad} lines are no metrics of a step ({first}); they are left out")
        if self._too_many:
            found.append(f"{self.path}: more than {_NAMES} metrics; the others are left out")
        return found

    @property
    def last_step(self) -> int:
        """Steps taken so far."""
        return int(max((column.steps[-1] for column in self.columns.values()), default=0))


def _number(value: object) -> float:
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            return float(value)
        except OverflowError:
            pass
    return math.nan


@dataclass(frozen=True)
class Curve:
    """One line of a figure. `low`, `high`: its band, [N]; None for a single run. `runs`: how many it is the mean of."""

    steps: Array
    values: Array
    low: Array | None = None
    high: Array | None = None
    runs: int = 1


def join(curves: Sequence[tuple[Array, Array]], points: int = POINTS) -> Curve:
    """The mean over runs at each step that any of them has, with the standard deviation as a band; one run as it is."""
    if len(curves) == 1:
        return Curve(*thin(*curves[0], points))
    steps = np.unique(np.concatenate([at for at, _ in curves]))
    values_RS = np.full((len(curves), len(steps)), math.nan)
    for row, (at, values) in zip(values_RS, curves, strict=True):
        row[np.searchsorted(steps, at)] = np.where(np.isfinite(values), values, math.nan)
    known = (~np.isnan(values_RS)).sum(0)
    mean = np.divide(np.nansum(values_RS, 0), known, out=np.full(len(steps), math.nan), where=known > 0)
    squares = np.nansum((values_RS - mean) ** 2, 0)
    spread = np.sqrt(np.divide(squares, known - 1, out=np.zeros(len(steps)), where=known > 1))
    at, mean, spread = (_bucket_means(each, points) for each in (steps, mean, spread))
    return Curve(np.round(at), mean, mean - spread, mean + spread, len(curves))


def thin(steps: Array, values: Array, points: int = POINTS) -> tuple[Array, Array]:
    """At most `points` of a curve: the least and the greatest value of each stretch, so that no spike is lost."""
    if len(values) <= points:
        return steps, values
    keep: set[int] = {0, len(values) - 1}
    for start, end in _stretches(len(values), max(1, points // 2 - 1)):
        known = np.flatnonzero(np.isfinite(values[start:end])) + start
        if len(known):
            keep |= {int(known[values[known].argmin()]), int(known[values[known].argmax()])}
        else:
            keep.add(start)
    chosen = sorted(keep)
    return steps[chosen], values[chosen]


def _bucket_means(values: Array, points: int) -> Array:
    if len(values) <= points:
        return values
    return np.array([_mean(values[start:end]) for start, end in _stretches(len(values), points)])


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _stretches(length: int, count: int) -> list[tuple[int, int]]:
    borders = np.linspace(0, length, count + 1).astype(int).tolist()
    return list(pairwise(borders))


def ends(columns: Mapping[str, Column], prefixes: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """The first value, the last value and the last step of each metric whose name begins with a prefix."""
    found = {}
    for name, column in columns.items():
        if name.startswith(tuple(prefixes)):
            steps, values = column.curve()
            found[name] = float(values[0]), float(values[-1]), float(steps[-1])
    return found


def size(path: Path) -> tuple[int, int]:
    """What changes when a file does: its size and the time of its last change, ns; zeros without the file."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns
