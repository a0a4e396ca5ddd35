"""Records of a comparison, one of each cell and seed, and what they say together."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minidist.run.directory import write_whole

BEFORE, TEACHER = "student before", "teacher"
Record = dict[str, Any]


class Records:
    """`compare.json`: a list of records, each with its cell's name as `objective` and its `seed`; replaced whole by each that
    is added."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: list[Record] = json.loads(file.read_text()) if file.is_file() else []

    def find(self, objective: str, seed: int | None = None) -> Record | None:
        return next((row for row in self.rows if (row["objective"], row["seed"]) == (objective, seed)), None)

    def add(self, record: Record, order: Sequence[str]) -> None:
        """In the place of one of the same cell and seed; sorted by `order`, what it does not name first."""
        key = record["objective"], record["seed"]
        self.rows = [row for row in self.rows if (row["objective"], row["seed"]) != key] + [record]
        place = {name: number for number, name in enumerate(order)}
        self.rows.sort(key=lambda row: (place.get(row["objective"], -1), row["seed"] or 0))
        write_whole(self._file, self.rows)


def by_objective(records: Sequence[Record], order: Sequence[str]) -> dict[str, list[Record]]:
    """The records of each objective that has any and is named in `order`, failed ones left out."""
    found = {name: [row for row in records if row["objective"] == name and "failed" not in row] for name in order}
    return {name: rows for name, rows in found.items() if rows}


def over_runs(records: Sequence[Record], order: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean of every figure over an objective's seeds and, from two on, their standard deviation as `<name>_sd`.

    Where any objective has several seeds, standard errors `<name>_se`, which are of one run, are left out.
    """
    grouped = by_objective(records, order)
    several = any(len(rows) > 1 for rows in grouped.values())
    table: dict[str, dict[str, float]] = {}
    for name, rows in grouped.items():
        figures: dict[str, float] = {}
        for key, value in rows[0].items():
            if not isinstance(value, float) or any(key not in row for row in rows) or key.endswith(("_se", "_sd")):
                continue
            values = np.array([row[key] for row in rows], float)
            figures[key] = float(values.mean())
            if len(rows) > 1:
                figures[f"{key}_sd"] = float(values.std(ddof=1))
            elif not several and f"{key}_se" in rows[0]:
                figures[f"{key}_se"] = rows[0][f"{key}_se"]
        table[name] = figures
    return table


def failures(records: Sequence[Record], order: Sequence[str]) -> list[str]:
    """One sentence for each run that failed."""
    return [
        f"{row['objective']}, seed {row['seed']}, failed: {row['failed']}"
        for row in records
        if "failed" in row and row["objective"] in order
    ]
