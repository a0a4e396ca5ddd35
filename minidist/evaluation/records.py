"""Records of a comparison, one of each cell and seed, and their figures over seeds."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median_low
from typing import Any, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from minidist.evaluation.figures import Figure, Figures, from_record
from minidist.run.files import read_record, write_json

BEFORE, TEACHER = "student before", "teacher"
COUNTS = {"optimizer_steps": ("optimizer steps", 0.0), "loss_tokens": ("loss tokens", 0.1)}
"""What training took, as records count it: its name in sentences, and the share by which equal budgets may differ."""
Record = Any
"""A mapping with the fields of `Row`, and figures."""


@with_config(extra="allow")
class Row(TypedDict):
    """The fields that every record has, and those of a comparison's cells that are read again."""

    objective: str
    seed: int | None
    value: NotRequired[float]
    settings: NotRequired[dict[str, Any]]
    steps: NotRequired[int]


class Records:
    """`compare.json`: a list of records, each with its cell's name as `objective` and its `seed`; in `trials.json` also with
    the `value` of the setting that is chosen.

    Every record that is added replaces the whole file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        remedy = "remove it to measure again, or set run.overwrite=true"
        self.rows: list[Record] = list(read_record(file, list[Row], remedy)) if os.path.lexists(file) else []

    def find(self, objective: str, seed: int | None = None, value: float | None = None) -> Record | None:
        return next((row for row in self.rows if _key(row) == (objective, seed, value)), None)

    def add(self, record: Record, order: Sequence[str]) -> None:
        """Add a record, replacing that of the same cell, seed and value; sort by `order`, cells that it does not name first."""
        self.rows = [row for row in self.rows if _key(row) != _key(record)] + [record]
        rank = {name: number for number, name in enumerate(order)}
        self.rows.sort(key=lambda row: (rank.get(row["objective"], -1), row["seed"] or 0, row.get("value", 0)))
        write_json(self._file, self.rows)


def _key(record: Record) -> tuple[str, int | None, float | None]:
    return record["objective"], record["seed"], record.get("value")


def by_objective(records: Sequence[Record], order: Sequence[str]) -> dict[str, list[Record]]:
    """The records of each objective of `order` that has any, without those of failed runs."""
    found = {name: [row for row in records if row["objective"] == name and "failed" not in row] for name in order}
    return {name: rows for name, rows in found.items() if rows}


def over_runs(records: Sequence[Record], order: Sequence[str]) -> dict[str, Figures]:
    """Means of the figures that all runs of an objective have, with their spread over the runs' seeds.

    Standard errors, which are of one run, are kept only where no objective has several runs.
    """
    grouped = by_objective(records, order)
    several = any(len(rows) > 1 for rows in grouped.values())
    figures = {name: _over_runs([from_record(row) for row in rows], errors=not several) for name, rows in grouped.items()}
    return {name: found | _counts(grouped[name]) for name, found in figures.items()}


def _over_runs(runs: Sequence[Figures], *, errors: bool) -> Figures:
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    means = {name: Figure.of_repeats([run[name].mean for run in runs]) for name in shared}
    return {name: replace(mean, error=runs[0][name].error if errors else None) for name, mean in means.items()}


def _counts(rows: Sequence[Record]) -> Figures:
    """What training took, where every run has it: `optimizer_steps` and `loss_tokens`, the labels that were trained on."""
    names = [name for name in COUNTS if all(name in row for row in rows)]
    return {name: Figure.of_repeats([row[name] for row in rows]) for name in names}


def uneven(result: Mapping[str, Figures]) -> list[str]:
    """A sentence for optimizer steps, and one for loss tokens, in which objectives differ from most others: not by what they
    minimise alone do their figures differ. Tokens may differ by 10 %, as the lengths of answers do."""
    found = []
    for count, (title, tolerance) in COUNTS.items():
        means = {name: figures[count].mean for name, figures in result.items() if count in figures}
        usual = median_low(means.values()) if means else 0.0
        others = {name: mean for name, mean in means.items() if abs(mean - usual) > tolerance * usual}
        if others:
            named = ", ".join(f"{name} {mean:,.0f}" for name, mean in others.items())
            found.append(f"Not the same budget: {title} are {usual:,.0f} in most cells, and differ in {named}.")
    return found


def failures(records: Sequence[Record], order: Sequence[str]) -> list[str]:
    """One sentence for each run that failed."""
    failed = [row for row in records if "failed" in row and row["objective"] in order]
    return [f"{row['objective']}, seed {row['seed']}, failed: {row['failed']}" for row in failed]
