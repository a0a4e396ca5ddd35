"""Records of a comparison, and their figures over runs, as table and as picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minidist.errors import RunDirectoryError
from minidist.evaluation.picture import draw_comparison
from minidist.evaluation.records import BEFORE, TEACHER, Records, failures, over_runs
from minidist.evaluation.table import markdown


def record(objective: str, seed: int | None, **figures: float) -> dict[str, Any]:
    return {"objective": objective, "seed": seed, "settings": {}, **figures}


ROWS = [
    record("b", 1, accuracy=0.75, accuracy_se=0.1, reverse_kl=0.4, seconds=30.0),
    record("b", 0, accuracy=0.25, accuracy_se=0.1, reverse_kl=0.2, seconds=10.0),
    record("a", 0, accuracy=0.5, accuracy_se=0.1, reverse_kl=0.3, seconds=5.0),
    {"objective": "a", "seed": 1, "settings": {}, "failed": "the loss is nan"},
    record(TEACHER, None, accuracy=0.6, reverse_kl=0.0),
    record(BEFORE, None, accuracy=0.1, accuracy_se=0.02, reverse_kl=9.0),
]
ORDER = [TEACHER, BEFORE, "a", "b"]


FOREIGN = '[{"objective": "a", "seed": 0, "steps": ""}]'


@pytest.mark.parametrize("text", ["[{", '{"objective": "a"}', "[1]", '[{"seed": 0}]', FOREIGN, ""])
def test_a_damaged_file_of_records_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=r"compare\.json .*; remove it to measure again, or set run.overwrite=true"):
        Records(tmp_path / "compare.json")


def test_records_are_kept_in_order_and_once_each(tmp_path: Path) -> None:
    records = Records(tmp_path / "compare.json")
    for row in [*ROWS, record("b", 1, accuracy=0.8)]:
        records.add(row, ORDER)
    again = Records(tmp_path / "compare.json")
    assert [(row["objective"], row["seed"]) for row in again.rows] == [
        *((TEACHER, None), (BEFORE, None), ("a", 0), ("a", 1), ("b", 0), ("b", 1))
    ]
    found = again.find("b", 1)
    assert found is not None and found["accuracy"] == 0.8 and again.find("b", 2) is None


def test_table_has_means_and_their_spread() -> None:
    result = over_runs(ROWS, ORDER)
    assert list(result) == ORDER
    assert result["b"]["accuracy"].mean == 0.5 and result["b"]["accuracy"].spread == pytest.approx(0.125**0.5)
    assert result[BEFORE]["accuracy"].error is None, "no standard errors beside deviations over seeds"
    assert over_runs(ROWS[2:], ORDER)[BEFORE]["accuracy"].error == 0.02
    lines = markdown(result).splitlines()
    assert lines[0] == "|  | accuracy | reverse KL | seconds |"
    assert lines[5] == "| b | 0.500 ± 0.354 | 0.300 ± 0.141 | 20.0 ± 14.1 |"
    assert failures(ROWS, ORDER) == ["a, seed 1, failed: the loss is nan"]


def test_picture_has_a_dot_for_each_run(tmp_path: Path) -> None:
    axes = draw_comparison(ROWS, ORDER, tmp_path / "compare.png").axes
    assert (tmp_path / "compare.png").stat().st_size > 5000
    assert [axis.get_title(loc="left") for axis in axes] == ["accuracy", "reverse KL, nats a token", "seconds"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a", "b"]
    dots = [line for line in axes[0].lines if line.get_marker() == "o"]
    assert [sorted(map(float, np.asarray(line.get_xdata()))) for line in dots] == [[0.5], [0.25, 0.75]]
    assert [float(np.asarray(line.get_xdata())[0]) for line in axes[0].lines if line.get_label() == TEACHER] == [0.6]
    assert axes[1].get_xlim()[1] < 1  # the student before lies far outside
