"""The influence of single rows, followed through training: as lines of influence.jsonl, and as a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minidist.config.teach import TraceConfig
from minidist.evaluation.lessons import draw_influence
from minidist.experience.exercises import Exercises
from minidist.run.files import write_text
from minidist.types import Array, Exercise


class Trace:
    """A fixed set of training rows, `sample` of them drawn from the run's seed and those that trace.rows names, judged by a
    fixed set of feedback rows: as many as a step has, or all, drawn once. A curve then shows the student's way alone.

    Args:
        config: the section `trace`.
        exercises: of the run, from whose rows and feedback rows the traced ones come.
        directory: of the run.
    """

    def __init__(self, config: TraceConfig, exercises: Exercises, directory: Path) -> None:
        self.every = config.every
        self._exercises = exercises
        self._directory = directory
        drawn = np.random.default_rng([exercises.seed, 2]).permutation(len(exercises.train))[: config.sample]
        positions = {row.index: position for position, row in enumerate(exercises.train.student)}
        self._followed = [positions[number] for number in config.rows]
        self._sample = sorted(int(index) for index in drawn)
        order = np.random.default_rng([exercises.seed, 3]).permutation(len(exercises.feedback))
        self._feedback = tuple(exercises.feedback[index] for index in order[: exercises.feedback_rows])
        self._records: list[tuple[int, list[float]]] = []

    @property
    def rows(self) -> list[int]:
        """Positions of the traced rows among the training rows: those that are followed singly, then the sample."""
        return self._followed + self._sample

    def exercise(self, step: int) -> Exercise:
        """The traced rows with the feedback rows, before step `step`: the same in every step."""
        rows = self._exercises.train.take(self.rows)
        return Exercise(step, tuple(rows.student), tuple(rows.teacher), self._feedback)

    def add(self, step: int, influence_B: Array) -> None:
        """Record the influence of the traced rows, before step `step`."""
        self._records.append((step, [float(value) for value in influence_B]))
        self._write()

    def draw(self) -> None:
        """Write influence.png: the mean over the sample with its spread, and each followed row."""
        if self._records:
            steps, values = zip(*self._records, strict=True)
            draw_influence(steps, np.array(values), self._names, len(self._followed), self._directory / "influence.png")

    def state_dict(self) -> Any:
        return self._records

    def load_state_dict(self, state: Sequence[tuple[int, list[float]]]) -> None:
        self._records = [(step, list(values)) for step, values in state]

    @property
    def _names(self) -> list[str]:
        """Each followed row by its number in the source."""
        return [f"row {self._exercises.train.student[index].index}" for index in self._followed]

    def _write(self) -> None:
        indices = [self._exercises.train.student[index].index for index in self.rows]
        lines = (
            json.dumps({"step": step, "row": row, "influence": value, "sampled": at >= len(self._followed)})
            for step, values in self._records
            for at, (row, value) in enumerate(zip(indices, values, strict=True))
        )
        write_text(self._directory / "influence.jsonl", "".join(line + "\n" for line in lines))
