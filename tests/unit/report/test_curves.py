"""Metrics of runs as curves: a file that grows, is cut or is broken; means over seeds; thinning."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from minidist.report.curves import MetricsFile, join, thin


def line(step: int, **values: object) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def test_a_file_is_read_on_and_its_half_written_line_waits(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(0, loss=3.0) + line(1, loss=2.0)[:9])
    metrics = MetricsFile(file)
    metrics.read()
    assert metrics.columns["loss"].curve()[1].tolist() == [3.0] and metrics.problems == []
    file.write_text(line(0, loss=3.0) + line(1, loss=2.0) + line(2, loss=1.0))
    metrics.read()
    steps, values = metrics.columns["loss"].curve()
    assert (steps.tolist(), values.tolist()) == ([1, 2, 3], [3.0, 2.0, 1.0]), "a line is read once, and steps count those taken"


def test_a_file_that_a_resumed_run_has_cut_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(0, loss=3.0) + line(1, loss=9.0))
    metrics = MetricsFile(file)
    metrics.read()
    with file.open("r+") as stream:
        stream.truncate(len(line(0, loss=3.0)))
    metrics.read()
    assert metrics.columns["loss"].curve()[1].tolist() == [3.0]


def test_of_a_step_that_was_written_twice_the_last_value_counts(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(0, loss=3.0) + line(1, loss=2.0) + line(1, loss=5.0) + line(0, loss=4.0))
    metrics = MetricsFile(file)
    metrics.read()
    steps, values = metrics.columns["loss"].curve()
    assert (steps.tolist(), values.tolist()) == ([1, 2], [4.0, 5.0])


@pytest.mark.parametrize(
    "bad", ["{", "[1]", "7", '{"loss": 1}', '{"step": "x"}', '{"step": null}', '{"step": 1e400}', "[" * 5000, "\\xff"]
)
def test_lines_that_are_no_metrics_are_counted_and_named(tmp_path: Path, bad: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(0, loss=3.0) + bad + "\n" + line(1, loss=2.0))
    metrics = MetricsFile(file)
    metrics.read()
    assert metrics.columns["loss"].curve()[1].tolist() == [3.0, 2.0]
    assert metrics.problems == [f"{file}: 1 lines are no metrics of a step (the first is line 2); they are left out"]


def test_values_that_are_no_numbers_are_gaps(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(line(step, x=value) for step, value in enumerate(["a", None, True, [1], 10**400, math.inf, 2])))
    metrics = MetricsFile(file)
    metrics.read()
    values = metrics.columns["x"].curve()[1]
    assert np.isnan(values[:5]).all() and values[5:].tolist() == [math.inf, 2.0]


def test_names_without_end_are_cut(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(0, **{f"x/{number}": 1.0 for number in range(5000)}))
    metrics = MetricsFile(file)
    metrics.read()
    assert len(metrics.columns) == 600 and "more than 600 metrics" in metrics.problems[0]


def test_thinning_keeps_each_spike_and_the_ends() -> None:
    values = np.sin(np.arange(100_000) / 5000)
    values[31_234], values[77_777] = 9.0, -9.0
    steps, kept = thin(np.arange(100_000.0), values, 800)
    assert len(kept) <= 800 and (kept.max(), kept.min()) == (9.0, -9.0)
    assert (steps[0], steps[-1]) == (0, 99_999) and (np.diff(steps) > 0).all()


def test_runs_are_joined_at_each_step_that_any_of_them_has() -> None:
    """Worked by hand: the values 1 and 3 have mean 2 and standard deviation sqrt(2)."""
    found = join([(np.array([1.0, 2.0]), np.array([1.0, 4.0])), (np.array([1.0, 3.0]), np.array([3.0, 6.0]))])
    assert found.steps.tolist() == [1, 2, 3] and found.values.tolist() == [2, 4, 6] and found.runs == 2
    assert found.high is not None and found.low is not None
    assert found.high - found.values == pytest.approx([math.sqrt(2), 0, 0]) and found.values - found.low == pytest.approx(
        [math.sqrt(2), 0, 0]
    )


def test_one_run_has_no_band_and_means_of_long_runs_are_thinned() -> None:
    steps = np.arange(10_000.0)
    assert join([(steps, steps)], 100).low is None
    found = join([(steps, steps), (steps, steps + 2)], 100)
    assert len(found.values) == 100 and found.values[0] == pytest.approx(steps[:100].mean() + 1)
