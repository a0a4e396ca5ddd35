"""Ratios of the measured runs, the file results.json, and the page peers.md."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.limit import StepOperations
from tests.benchmarks.peers.runs import Measured
from tests.benchmarks.peers.workloads import OWN, PEERS

RESULTS = Path("runs/bench/results.json")
GIB = 2**30


@dataclass(frozen=True)
class WayResult:
    """Medians over a way's runs: seconds of a step, useful tokens a second, useful tokens of a step, and the peak of memory."""

    step_s: float
    tokens_per_s: float
    tokens: float
    memory_gib: float
    runs: list[dict[str, Any]]

    @classmethod
    def of(cls, runs: Sequence[Measured]) -> "WayResult":
        figures = [{"seconds": _rounded(run.seconds), "tokens": run.tokens, "gib": run.peak_bytes / GIB} for run in runs]
        return cls(
            step_s=statistics.median(run.step_s for run in runs),
            tokens_per_s=statistics.median(run.tokens_per_s for run in runs),
            tokens=statistics.mean(tokens for run in runs for tokens in run.tokens),
            memory_gib=statistics.median(run.peak_bytes for run in runs) / GIB,
            runs=figures,
        )


@dataclass(frozen=True)
class Limit:
    """The least seconds that minidist's steps could take.

    Args:
        operations: of rollouts with `tokens` useful tokens.
        rate: operations a second of matrix products.
    """

    operations: StepOperations
    tokens: int
    rate: float

    def seconds(self, tokens: float) -> float:
        """Of a step of `tokens` useful tokens whose lengths are distributed as those of the rollouts."""
        return self.operations.total / self.rate * tokens / self.tokens

    def phases(self, tokens: float) -> dict[str, float]:
        """Of its phases, seconds."""
        return {name: count / self.rate * tokens / self.tokens for name, count in asdict(self.operations).items()}


def record(
    ways: dict[str, WayResult], limit: Limit, phases: dict[str, dict[str, float]], parity: dict[str, float]
) -> dict[str, Any]:
    """One workload in one precision: the ratios of the way `minidist`, and those of its other ways by name. `phases`: seconds
    by way. The memory ratio is to the peer that is the fastest."""
    peers = {name: ways[name] for name in PEERS if name in ways}
    fastest = max(peers, key=lambda name: peers[name].tokens_per_s)
    own = {name: _ratios(ways[name], peers[fastest], limit) | {"phases_s": phases[name]} for name in OWN if name in ways}
    return own.pop("minidist") | {
        **own,
        "fastest_peer": fastest,
        "rate_gflops": limit.rate / 1e9,
        "parity": parity,
        "ways": {name: asdict(way) for name, way in ways.items()},
    }


def _ratios(own: WayResult, peer: WayResult, limit: Limit) -> dict[str, Any]:
    return {
        "ratio_to_fastest_peer": own.tokens_per_s / peer.tokens_per_s,
        "memory_ratio": own.memory_gib / peer.memory_gib,
        "ratio_to_flop_limit": own.tokens / own.tokens_per_s / limit.seconds(own.tokens),
        "limit_s": limit.seconds(own.tokens),
        "limit_phases_s": limit.phases(own.tokens),
    }


def write(records: dict[str, dict[str, Any]], page: Path) -> None:
    """Add records to runs/bench/results.json, and write a page of all that is there, with its figures beside it."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found |= records
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    page.with_suffix(".json").write_text(RESULTS.read_text())
    page.write_text(page_of(found))


def page_of(records: dict[str, dict[str, Any]]) -> str:
    """The page: what the ways took, and the three ratios of each workload."""
    ratios = ["| | × fastest peer | memory | × FLOP limit | limit, s | loss differs by |", "|---|---|---|---|---|---|"]
    times = ["| | way | s a step | useful tokens a second | GiB |", "|---|---|---|---|---|"]
    phases = ["| | phase | s | least by FLOPs |", "|---|---|---|---|"]
    for name, each in records.items():
        parity = max(each["parity"].values())
        for way in [way for way in OWN if way in each["ways"]]:
            own = each.get(way, each)
            figures = (own[key] for key in ("ratio_to_fastest_peer", "memory_ratio", "ratio_to_flop_limit", "limit_s"))
            ratios.append(f"| {name}, {way} | " + " | ".join(f"{figure:.2f}" for figure in figures) + f" | {parity:.0e} |")
            for phase, seconds in own["phases_s"].items():
                phases.append(f"| {name}, {way} | {phase} | {seconds:.2f} | {own['limit_phases_s'].get(phase, 0):.2f} |")
        for way, found in each["ways"].items():
            times.append(
                f"| {name} | {way} | {found['step_s']:.2f} | {found['tokens_per_s']:,.0f} | {found['memory_gib']:.2f} |"
            )
    header = "Made by `python -m tests.benchmarks.peers`; [how it measures](README.md#against-trl)."
    return "\n".join(["# minidist against TRL", "", header, "", *ratios, "", *times, "", *phases, ""])


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]
