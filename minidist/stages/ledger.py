"""What of a comparison is recorded and what is left: trials on validation prompts, choices, and runs on test prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from minidist.config import CompareConfig
from minidist.evaluation.chosen import Choice, choice_lines, choose
from minidist.evaluation.differences import ranking_lines, rankings
from minidist.evaluation.figures import Figures, of_prompts
from minidist.evaluation.picture import draw_comparison
from minidist.evaluation.records import BEFORE, TEACHER, Record, Records, failures, over_runs, uneven
from minidist.evaluation.table import markdown, show
from minidist.run.files import read_record, write_json, write_text

_Parts = dict[str, list[float]]


@dataclass(frozen=True)
class Case:
    """A run of a comparison: a cell with a seed and a value of the setting that is chosen; None where none is."""

    name: str
    seed: int
    value: float | None = None

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}" + ("" if self.value is None else f", {self.value}")


def settings(config: CompareConfig, case: Case) -> dict[str, Any]:
    """The settings of a run in its record: those in which cells usually differ."""
    cell, first = config.cell(case.name, case.seed, case.value), config.first
    kept = cell.model_dump(mode="json", include={"method", "objective", "prefix", "streams"})
    kept |= {"teacher_mix": cell.teacher_mix, "lr": cell.learner.optimizer.lr}
    overlap = cell.loop.model_dump(mode="json", exclude={"stream"})
    kept |= {"loop": overlap} if cell.loop.max_staleness else {}
    if config.choose is not None:
        kept |= {"chosen": {config.choose.key: case.value}}
    prompts = cell.data.prompts
    return kept | ({"prompts": prompts.model_dump(mode="json")} if prompts != first.data.prompts else {})


class Ledger:
    """The records of a comparison, in its directory.

    `compare.json` has one record of each cell and seed, evaluated on the test prompts; `trials.json` one of each run that a
    setting is chosen by, evaluated on the validation prompts; `prompts/NAME-seedN.json` the figures of each test prompt.
    """

    def __init__(self, config: CompareConfig, path: Path) -> None:
        self._config = config
        self._path = path
        self._order = [TEACHER, BEFORE, *config.cells]
        self._records = Records(path / "compare.json")
        self._trials = Records(path / "trials.json")

    @property
    def has_baselines(self) -> bool:
        """Whether teacher and student before training are recorded."""
        return self._records.find(BEFORE) is not None

    @property
    def count(self) -> int:
        """Runs of the whole comparison, each counted once."""
        config = self._config
        again = sum(seed in config.seeds for seed in config.trial_seeds)
        runs = len(config.seeds) - again + len(config.trial_seeds) * len(config.values)
        return len(config.cells) * runs

    def waiting_trials(self) -> list[Case]:
        """Trials without a record, seed by seed."""
        return [case for case in self._cases() if not self._recorded(self._trials, case, case.value)]

    def waiting(self) -> list[Case]:
        """Runs on the test prompts without a record, seed by seed; their values are chosen: no trial is left."""
        config, choices = self._config, self.choices()
        values = {name: choices[name].value if name in choices else None for name in config.cells}
        cases = [Case(name, seed, values[name]) for seed in config.seeds for name in config.cells]
        return [case for case in cases if not self._recorded(self._records, case, None)]

    def choices(self) -> dict[str, Choice]:
        """What is chosen for each cell whose trials are all recorded."""
        config, asked, found = self._config, self._config.choose, {}
        for name in config.cells if asked is not None else ():
            assert asked is not None
            rows = {value: [self._trials.find(name, seed, value) for seed in config.trial_seeds] for value in asked.values}
            if all(row is not None for tried in rows.values() for row in tried):
                found[name] = choose(asked.key, asked.by, rows)
        return found

    def add_trial(self, case: Case, record: Record) -> None:
        """Record a run on the validation prompts."""
        self._trials.add(record | {"value": case.value}, self._order)

    def add(self, record: Record, figures: Figures | None = None) -> None:
        """Record a run on the test prompts, with its figures of each prompt and how its setting was chosen; or a baseline."""
        name, choice = record["objective"], self.choices().get(record["objective"])
        if figures is not None:
            file = self._of_prompts(name, record["seed"])
            file.parent.mkdir(exist_ok=True)
            write_json(file, of_prompts(figures), indent=None)
        self._records.add(record | ({"choice": choice.record()} if choice else {}), self._order)

    def show(self) -> None:
        """Print the table; write table.md with the choices and the orders of the cells, orders.json and the picture."""
        rows, path = self._records.rows, self._path
        result, failed = over_runs(rows, self._order), failures(rows, self._order)
        sentences = [*failed, *uneven({name: result[name] for name in self._config.cells if name in result})]
        runs, without = self._runs()
        if without:
            sentences.append(
                f"Not in the orders below, since a run failed or its figures of each prompt are missing: {without}."
            )
        orders = rankings(runs) if len(runs) > 1 else []
        show(result)
        page = [*choice_lines(self.choices()), *(line for order in orders for line in ranking_lines(order))]
        write_text(path / "table.md", markdown(result) + "".join(f"\n{each}\n" for each in sentences) + "\n" + "\n".join(page))
        write_json(path / "orders.json", [pair for order in orders for pair in order.records()])
        draw_comparison(rows, self._order, path / "compare.png")
        for sentence in sentences:
            print(sentence)
        print(f"records, tables and picture: {path}/compare.json, orders.json, table.md, compare.png")

    def _cases(self) -> Iterator[Case]:
        config = self._config
        for seed, name, value in product(config.trial_seeds, config.cells, config.values):
            yield Case(name, seed, value)

    def _recorded(self, records: Records, case: Case, value: float | None) -> bool:
        cell, record = self._config.cell(case.name, case.seed, case.value), records.find(case.name, case.seed, value)
        if record is None or cell.run.overwrite:
            return False
        return record.get("settings") == settings(self._config, case) and record.get("steps", cell.run.steps) >= cell.run.steps

    def _runs(self) -> tuple[dict[str, dict[int, _Parts]], str]:
        """By cell and seed the figures of each test prompt, of cells that have them for every seed; and the other cells."""
        runs: dict[str, dict[int, _Parts]] = {}
        for name in self._config.cells:
            found = {seed: self._read(name, seed) for seed in self._config.seeds}
            if all(found.values()):
                runs[name] = {seed: parts for seed, parts in found.items() if parts}
        return runs, ", ".join(name for name in self._config.cells if name not in runs)

    def _read(self, name: str, seed: int) -> _Parts | None:
        record, file = self._records.find(name, seed), self._of_prompts(name, seed)
        if record is None or "failed" in record or not file.exists():
            return None
        return read_record(file, _Parts, "remove it to leave the cell out of the orders, or set run.overwrite=true")

    def _of_prompts(self, name: str, seed: int) -> Path:
        return self._path / "prompts" / f"{name}-seed{seed}.json"
