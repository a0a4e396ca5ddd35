"""The value of a setting that is best for a model on validation prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.evaluation.better import RANKED, loss
from minidist.evaluation.records import Record


@dataclass(frozen=True)
class Choice:
    """What was tried, and what was chosen.

    Args:
        key: the setting.
        by: the figure that decided.
        value: the best value; the smallest where every value failed.
        figures: by value the figures of the validation prompts, means over the seeds; None where a run failed.
    """

    key: str
    by: str
    value: float
    figures: Mapping[float, Mapping[str, float] | None]

    @property
    def border(self) -> str | None:
        """Which end of the values was chosen, so that one beyond it may be better; None: neither."""
        values = list(self.figures)
        return {values[0]: "smallest", values[-1]: "largest"}.get(self.value)

    def record(self) -> dict[str, Any]:
        """The choice, as the record of a run with the chosen value holds it."""
        tried = {str(value): figures or "failed" for value, figures in self.figures.items()}
        return {"key": self.key, "by": self.by, "value": self.value, "validation": tried}


def choose(key: str, by: str, trials: Mapping[float, Sequence[Record]]) -> Choice:
    """The best of the values, in rising order; the smaller of two that are equally good.

    trials: records of the runs of each value. by: the figure that decides.
    """
    figures = {value: _means(records) for value, records in trials.items()}
    scores = {value: loss(by, found[by]) for value, found in figures.items() if found is not None}
    value = min(scores or figures, key=lambda value: scores.get(value, 0.0))
    return Choice(key, by, value, figures)


def _means(records: Sequence[Record]) -> dict[str, float] | None:
    """Means over runs of the figures by which models are ranked; None where a run failed."""
    if any("failed" in record for record in records):
        return None
    names = [name for name in RANKED if all(name in record for record in records)]
    return {name: float(np.mean([record[name] for record in records])) for name in names}


def choice_lines(choices: Mapping[str, Choice]) -> list[str]:
    """What was tried for each model, as a Markdown table, and a sentence for each choice that is the end of its list."""
    if not choices:
        return []
    first = next(iter(choices.values()))
    lines = [f"## {first.key} chosen by {RANKED[first.by]} on the validation prompts", ""]
    lines.append("|  | " + " | ".join(str(value) for value in first.figures) + " |")
    lines.append("| --- |" + " --- |" * len(first.figures))
    lines += [f"| {name} | {' | '.join(_cells(choice))} |" for name, choice in choices.items()]
    lines += ["", "Bold: chosen; the cell's figures above are of runs with this value.", ""]
    for name, choice in choices.items():
        if not any(choice.figures.values()):
            lines += [f"{name}: the run failed with every {choice.key}; figures are of {choice.value}.", ""]
        elif choice.border is not None:
            beyond = "smaller" if choice.border == "smallest" else "larger"
            lines += [
                f"{name}: {choice.key} {choice.value} is the {choice.border} of the list; a {beyond} one may be better.",
                "",
            ]
    return lines


def _cells(choice: Choice) -> list[str]:
    shown = {value: f"{found[choice.by]:.3f}" if found else "failed" for value, found in choice.figures.items()}
    return [f"**{text}**" if value == choice.value else text for value, text in shown.items()]
