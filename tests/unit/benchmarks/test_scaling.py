"""Slopes, excesses and pages of measured curves, by hand."""

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import scaling


def points(*seconds: float) -> list[dict[str, Any]]:
    """Of 16, 32, 64 ... rows, with operations that grow as the rows do."""
    rows = [16 * 2**index for index in range(len(seconds))]
    return [
        {"rows": count, "seconds": {"score": value}, "operations": {"score": count}, "update_bytes": 2**20}
        for count, value in zip(rows, seconds, strict=True)
    ]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_a_slope_is_the_exponent(exponent: float) -> None:
    across = [1.0, 3.0, 10.0]
    assert scaling.slope(across, [7 * value**exponent for value in across]) == pytest.approx(exponent)


def test_the_excess_is_over_what_the_first_point_predicts() -> None:
    assert scaling.excess(points(1.0, 2.0, 4.0), "score") == pytest.approx(1.0)
    assert scaling.excess(points(1.0, 3.0, 4.0), "score") == pytest.approx(1.5)


def test_the_page_has_both_slopes_and_the_plot_is_drawn(tmp_path: Path) -> None:
    found = {"sequences": points(1.0, 4.0), "ranks": [{"ranks": 2, "seconds": {"update": 0.5}}]}
    page = scaling.page_of(found)
    assert "| sequences | score | 1.00 | 2.00 | 2.00 |" in page
    assert "| ranks | 2 |  |  | 0.50 |  |" in page
    scaling.draw(found, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_a_point_has_a_length_for_each_row() -> None:
    assert scaling.Point(rows=2, answer=5).lengths == [(32, 5), (32, 5)]
