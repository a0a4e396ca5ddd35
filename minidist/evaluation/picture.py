"""Pictures of comparisons: one small panel a figure with the same rows, each run a dot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minidist.evaluation.records import BEFORE, TEACHER, Record, by_objective
from minidist.types import Array

_PANELS = {
    "accuracy": "accuracy",
    "rouge_l": "ROUGE-L",
    "reverse_kl": "reverse KL, nats a token",
    "forward_kl": "forward KL, nats a token",
    "exposure_bias": "exposure bias, percent",
    "distinct_4": "distinct-4",
    "seconds": "seconds",
}
_DOT, _MEAN, _GRID = "#7a9cc6", "#1f3b5c", "#d9d9d9"
_WIDE = 30  # a panel whose largest divergence is so many times its smallest is logarithmic
_LINES = {TEACHER: ("#2e7d4f", "-"), BEFORE: ("#b0582c", "--")}
_STYLE: Any = {"font.size": 9, "axes.titlesize": 9} | {f"axes.spines.{side}": False for side in ("top", "right", "left")}


def draw_comparison(records: Sequence[Record], order: Sequence[str], file: Path | BinaryIO) -> Figure:
    """One panel a figure, one row an objective of `order`: a dot for each run, the mean and the standard deviation of the runs.

    The teacher and the student before training are vertical lines, where they lie within a panel's range.
    """
    grouped = by_objective(records, order)
    names = [name for name in grouped if name not in _LINES]
    shown = [key for key in _PANELS if any(key in row for name in names for row in grouped[name])]
    columns = min(3, max(1, len(shown)))
    with rc_context(_STYLE):
        rows = -(-max(1, len(shown)) // columns)
        figure, axes = _grid(rows, columns, width=2.3, height=(0.22 * len(names) + 0.8) * rows + 0.3, left=1.4)
        for number, (key, axis) in enumerate(zip(shown, axes.flat, strict=False)):
            _panel(axis, key, [[row[key] for row in grouped[name] if key in row] for name in names])
            _references(axis, {name: grouped[name][0][key] for name in _LINES if key in grouped.get(name, [{}])[0]})
            axis.set_yticks(range(len(names)), names if number % columns == 0 else [""] * len(names))
            axis.set_ylim(len(names) - 0.4, -0.6)
        for axis in axes.flat[len(shown) :]:
            axis.remove()
        handles = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside lower right", ncols=2, frameon=False)
        figure.savefig(file, dpi=150)
    return figure


def _panel(axis: Axes, key: str, values: Sequence[Sequence[float]]) -> None:
    for row, runs in enumerate(values):
        if not runs:
            continue
        axis.plot(runs, [row] * len(runs), "o", color=_DOT, markersize=4, alpha=0.8, markeredgewidth=0)
        spread = float(np.std(runs, ddof=1)) if len(runs) > 1 else 0.0
        axis.errorbar(np.mean(runs), row, xerr=spread or None, fmt="|", color=_MEAN, markersize=9, markeredgewidth=1.6)
    axis.set_title(_PANELS[key], loc="left")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    flat = [value for runs in values for value in runs]
    if key.endswith("_kl") and min(flat) > 0 and max(flat) > _WIDE * min(flat):
        axis.set_xscale("log")  # else one collapsed run would squeeze all others into a line
    else:
        axis.locator_params(axis="x", nbins=4)
    if key == "seconds":
        axis.set_xlim(left=0)


def _references(axis: Axes, values: Mapping[str, float]) -> None:
    """Vertical lines of values within the panel's range, which stays as it is."""
    low, high = axis.get_xlim()
    for name, value in values.items():
        if low <= value <= high:
            color, style = _LINES[name]
            axis.axvline(value, color=color, linestyle=style, linewidth=1, label=name, zorder=1)
    axis.set_xlim(low, high)


def draw_toy(curves: Mapping[str, Mapping[str, Mapping[str, Array]]], epochs: Sequence[int], file: Path) -> Figure:
    """One panel for the head and one for the tail of each teacher.

    Each panel has one line a divergence: the mean over seeds, with the standard deviation as a band.

    curves: by teacher, by divergence, by `head` and `tail`: errors as shares of the first error, [seeds, epochs].
    epochs: of the curves' columns.
    """
    with rc_context(_STYLE):
        figure, axes = _grid(len(curves), 2, width=3.6, height=2.6 * len(curves) + 0.5, left=0.6)
        for (teacher, of_teacher), row in zip(curves.items(), axes, strict=True):
            for part, axis in zip(("head", "tail"), row, strict=True):
                for number, (divergence, errors) in enumerate(of_teacher.items()):
                    color = colormaps["tab20"](2 * number % 20 + number // 10)
                    _curve(axis, epochs, errors[part], color=color, label=divergence)
                axis.set(xscale="log", ylim=(0, 1.05))
                axis.set_title(f"{teacher}: {part}", loc="left")
                axis.grid(color=_GRID, linewidth=0.6)
            row[0].set_ylabel("sum |p - q| over its start")
        for axis in axes[-1]:
            axis.set_xlabel("epoch")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
        figure.savefig(file, dpi=150)
    return figure


def _curve(axis: Axes, epochs: Sequence[int], errors_SE: Array, **style: Any) -> None:
    mean = errors_SE.mean(0)
    at = np.asarray(epochs, float) + 1  # epoch 0 on a logarithmic axis
    axis.plot(at, mean, linewidth=1.4, **style)
    if len(errors_SE) > 1:
        spread = errors_SE.std(0, ddof=1)
        axis.fill_between(at, np.maximum(mean - spread, 1e-9), mean + spread, color=style["color"], alpha=0.1, linewidth=0)


def _grid(rows: int, columns: int, *, width: float, height: float, left: float) -> tuple[Figure, Any]:
    """A figure without a window; width and height of a panel, and `left`, the space for labels, in inches."""
    figure = Figure(figsize=(width * columns + left, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)
