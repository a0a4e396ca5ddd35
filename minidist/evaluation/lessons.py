"""Figures and pictures of `minidist teach`: metrics of predictions, curves of student and teacher, influence of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from minidist.evaluation.figures import Figure as FigureOfRuns
from minidist.evaluation.metrics import metrics
from minidist.evaluation.records import Record, by_objective, over_runs
from minidist.types import Array, Judged

_STYLE: Any = {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False}
_COLOURS = ("#1f3b5c", "#b0582c", "#2e7d4f", "#7a5195", "#c29b2c", "#5b8fb0", "#8c564b", "#666666")
_DASHES = {"student": "-", "teacher": "--"}
_GRID = "#d9d9d9"


def score(names: Sequence[str], judged: Judged) -> dict[str, float]:
    """The metrics by name, and `loss`, the mean loss of the rows."""
    return metrics(names, judged.predicted, judged.labels) | {"loss": float(judged.loss.mean())}


@dataclass(frozen=True)
class LessonCurve:
    """Evaluations of one run: steps, and figures such as `student/accuracy`. `label`: the run's name in the legend."""

    label: str
    evaluations: Sequence[tuple[int, dict[str, float]]]


def draw_curves(runs: Sequence[LessonCurve], file: Path) -> Figure:
    """One panel for each figure over steps; a colour a run, a full line for its student and a dashed one for its teacher."""
    names = list(dict.fromkeys(name.partition("/")[2] for _, figures in runs[0].evaluations for name in figures))
    with rc_context(_STYLE):
        legend = -(-2 * len(runs) // 4)  # rows
        figure = Figure(figsize=(3.4 * len(names), 2.7 + 0.22 * legend), layout="constrained")
        for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for number, run in enumerate(runs):
                for side, dash in _DASHES.items():
                    key = f"{side}/{name}"
                    points = [(step, figures[key]) for step, figures in run.evaluations if key in figures]
                    label = " ".join(filter(None, (run.label, side)))
                    if len(points) > 1:  # a teacher that does not learn is measured once
                        axis.plot(*zip(*points, strict=True), dash, color=_COLOURS[number % 8], linewidth=1.4, label=label)
            axis.set_title(name.replace("_", " "), loc="left")
            axis.set_xlabel("step")
            axis.grid(color=_GRID, linewidth=0.6)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(file, dpi=150)
    return figure


def draw_influence(steps: Sequence[int], influence_TB: Array, names: Sequence[str], followed: int, file: Path) -> Figure:
    """Influence over steps: a line for each of the first `followed` rows, and the mean of the others with their quartiles."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 3.2), layout="constrained")
        axis = figure.subplots()
        axis.axhline(0, color="#999999", linewidth=0.8)
        if (sample_TB := influence_TB[:, followed:]).shape[1]:
            low, high = np.quantile(sample_TB, [0.25, 0.75], axis=1)
            axis.fill_between(steps, low, high, color=_GRID, label=f"middle half of {sample_TB.shape[1]} rows", linewidth=0)
            axis.plot(steps, sample_TB.mean(1), color="#555555", linewidth=1.4, label=f"mean of {sample_TB.shape[1]} rows")
        for number, name in enumerate(names):
            axis.plot(steps, influence_TB[:, number], color=_COLOURS[number % 8], linewidth=1.4, label=name)
        axis.set(xlabel="step", ylabel="influence on the held-out loss")
        axis.legend(frameon=False)
        figure.savefig(file, dpi=150)
    return figure


_NAMES = {"accuracy": "accuracy", "f1": "F1", "macro_f1": "macro F1", "matthews": "Matthews", "pearson": "Pearson"}
_NAMES |= {"spearman": "Spearman", "loss": "loss", "seconds": "seconds"}


def lesson_table(records: Sequence[Record], order: Sequence[str], metrics: Sequence[str]) -> str:
    """A Markdown table of a comparison: one row a cell, means and standard deviations over seeds."""
    rows = over_runs(records, order)
    teacher = [f"teacher_{name}" for name in metrics if any(f"teacher_{name}" in figures for figures in rows.values())]
    columns = [*metrics, "loss", *teacher, "seconds"]
    titles = [_NAMES.get(name) or f"teacher's {_NAMES[name.removeprefix('teacher_')]}" for name in columns]
    lines = [["", *titles], ["---"] * (len(columns) + 1)]
    constant = next((row["majority"] for row in records if row["majority"]), {})
    lines.append(["majority", *(f"{constant[name]:.3f}" if name in constant else "–" for name in columns)])
    lines += [
        [cell, *(_cell(figures.get(name), 1 if name == "seconds" else 3) for name in columns)] for cell, figures in rows.items()
    ]
    runs = max(len([row for row in records if row["objective"] == name]) for name in order)
    caption = f"Mean ± standard deviation over {runs} seeds." if runs > 1 else "One seed."
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{caption}\n"


def _cell(figure: FigureOfRuns | None, digits: int) -> str:
    if figure is None:
        return "–"
    return f"{figure.mean:.{digits}f}" + ("" if figure.spread is None else f" ± {figure.spread:.{digits}f}")


def draw_lessons(records: Sequence[Record], order: Sequence[str], metrics: Sequence[str], file: Path) -> Figure:
    """One panel a metric and one for the loss, one row a cell: a dot for each run, and the mean; the majority is a line."""
    grouped = by_objective(records, order)
    with rc_context(_STYLE):
        figure = Figure(figsize=(2.8 * (len(metrics) + 1) + 1.2, 0.24 * len(grouped) + 1.0), layout="constrained")
        axes = figure.subplots(1, len(metrics) + 1, squeeze=False)[0]
        for axis, name in zip(axes, [*metrics, "loss"], strict=True):
            for number, rows in enumerate(grouped.values()):
                values = [row[name] for row in rows]
                axis.plot(values, [number] * len(values), "o", color="#7a9cc6", markersize=4, alpha=0.8)
                axis.plot(np.mean(values), number, "|", color=_COLOURS[0], markersize=10, markeredgewidth=1.6)
            constant = records[0]["majority"].get(name)
            if constant is not None:
                axis.axvline(constant, color=_COLOURS[1], linestyle="--", linewidth=1, label="majority")
                axis.legend(frameon=False, loc="lower left")
            axis.set_yticks(range(len(grouped)), list(grouped) if axis is axes[0] else [""] * len(grouped))
            axis.set_ylim(len(grouped) - 0.4, -0.6)
            axis.set_title(_NAMES[name], loc="left")
            axis.grid(axis="x", color=_GRID, linewidth=0.6)
        figure.savefig(file, dpi=150)
    return figure
