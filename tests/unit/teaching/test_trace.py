"""The trace: the same rows, judged by the same held-out rows, in every measurement."""

from pathlib import Path

import numpy as np
import pytest

from minidist.config.teach import TraceConfig
from minidist.experience.exercises import Exercises, TaskRows
from minidist.teaching.trace import Trace
from minidist.types import LabelledRow


def exercises(held_out: int = 30, seed: int = 1) -> Exercises:
    made = [LabelledRow(number, np.array([number], np.int32)) for number in range(50 + held_out)]
    return Exercises(TaskRows(made[:50], made[:50]), made[50:], 8, 10, seed)


def trace(found: Exercises, folder: Path) -> Trace:
    return Trace(TraceConfig(sample=4, rows=[7]), found, folder)


def numbers(rows: tuple[LabelledRow, ...]) -> list[int]:
    return [row.index for row in rows]


def test_every_measurement_takes_the_same_feedback_rows_and_steps_draw_others(tmp_path: Path) -> None:
    found = exercises()
    traced = trace(found, tmp_path)
    measured = [numbers(traced.exercise(step).feedback) for step in (0, 3, 50)]
    assert measured[0] == measured[1] == measured[2] and len(set(measured[0])) == 10 and min(measured[0]) >= 50
    drawn = [numbers(found.feedback_at(step)) for step in (0, 3, 50)]
    assert len({tuple(each) for each in drawn}) == 3


def test_a_resumed_run_measures_with_the_rows_of_before_and_another_seed_with_others(tmp_path: Path) -> None:
    first, again, other = (trace(exercises(seed=seed), tmp_path).exercise(5) for seed in (1, 1, 2))
    assert numbers(first.feedback) == numbers(again.feedback) != numbers(other.feedback)
    assert numbers(first.student) == numbers(again.student) and first.student[0].index == 7


@pytest.mark.parametrize("held_out", [3, 10])
def test_few_feedback_rows_are_all_taken_once(tmp_path: Path, held_out: int) -> None:
    measured = numbers(trace(exercises(held_out), tmp_path).exercise(0).feedback)
    assert sorted(measured) == list(range(50, 50 + held_out))
