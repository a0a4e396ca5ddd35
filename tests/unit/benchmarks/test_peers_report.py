"""Ratios of measured runs, by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.peers import report
from tests.benchmarks.peers.limit import StepOperations
from tests.benchmarks.peers.report import Limit, WayResult
from tests.benchmarks.peers.runs import Measured


def way(seconds: float, gib: float) -> WayResult:
    """100 tokens a step."""
    return WayResult.of([Measured([seconds], [100.0], int(gib * report.GIB), [])])


LIMIT = Limit(StepOperations(10, 20, 30), tokens=50, rate=30.0)  # 60 operations at 50 tokens: 2 s; at 100: 4 s


def record() -> dict[str, object]:
    ways = {"minidist": way(5, 3), "one_process": way(4, 1.5), "distillation": way(20, 6), "gkd": way(40, 2)}
    return report.record(ways, LIMIT, {"minidist": {"score": 1.5}, "one_process": {"score": 1.25}}, {"distillation": 1e-7})


def test_ratios_are_to_the_faster_peer_and_to_the_limit() -> None:
    found = record()
    assert found["fastest_peer"] == "distillation"
    assert found["ratio_to_fastest_peer"] == pytest.approx(4.0)
    assert found["memory_ratio"] == pytest.approx(0.5)
    assert found["ratio_to_flop_limit"] == pytest.approx(5 / 4)
    alone = {"ratio_to_fastest_peer": 5.0, "memory_ratio": 0.25, "ratio_to_flop_limit": 1.0, "phases_s": {"score": 1.25}}
    own: Any = found["one_process"]
    assert {name: own[name] for name in alone} == alone and found["phases_s"] == {"score": 1.5}


def test_the_limit_is_that_of_the_tokens_that_were_written() -> None:
    assert LIMIT.seconds(100) == pytest.approx(4.0)
    assert LIMIT.phases(100) == pytest.approx({"generate": 2 / 3, "score": 4 / 3, "update": 2.0})


def test_results_keep_other_workloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "bench" / "results.json")
    report.write({"ragged": record()}, tmp_path / "peers.md")
    report.write({"equal": record()}, tmp_path / "peers.md")
    found = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert list(found) == ["ragged", "equal"]
    assert {"ratio_to_fastest_peer", "memory_ratio", "ratio_to_flop_limit"} <= set(found["equal"])
    page = (tmp_path / "peers.md").read_text()
    assert "| equal, minidist | 4.00 | 0.50 | 1.25 |" in page and "| equal, one_process | 5.00 | 0.25 | 1.00 |" in page
    assert "| equal, one_process | score | 1.25 | 1.33 |" in page
    assert json.loads((tmp_path / "peers.json").read_text()) == found
