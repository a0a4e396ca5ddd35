"""The suite: `python -m tests.benchmarks.peers [WORKLOAD ...] [--dtypes ...] [--rounds N]`.

For each workload and precision: loss parity on identical tokens, without which no time is reported; then rounds in which the
ways take turns, each in a process of its own; then the ratios.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests.benchmarks.peers import limit, report
from tests.benchmarks.peers.runs import Measured, Steps, answers_of, losses_of, phases, run_minidist, run_peer
from tests.benchmarks.peers.trl_side import PeerTask
from tests.benchmarks.peers.workloads import DTYPES, OWN, PEERS, WORKLOADS, PeerSettings, Prepared

PARITY = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest relative difference of the losses on identical tokens."""
PAGE = Path(__file__).parents[1] / "peers.md"


def main() -> None:
    arguments = _arguments()
    dtypes = [dtype for dtype in arguments.dtypes if dtype == "float32" or limit.has_native_bfloat16()]
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        for name in arguments.workloads or WORKLOADS:
            directory = Path(folder) / name
            directory.mkdir()
            prepared = WORKLOADS[name].prepare(directory)
            for dtype in dtypes:
                key = name if dtype == "float32" else f"{name}_{dtype}"
                report.write({key: Comparison(prepared, dtype, arguments).record()}, PAGE)
    print(f"result: {report.RESULTS}, {PAGE}")


class Comparison:
    """One workload in one precision."""

    def __init__(self, prepared: Prepared, dtype: str, arguments: argparse.Namespace) -> None:
        self._prepared = prepared
        self._dtype = dtype
        self._ways = arguments.ways
        self._rounds = arguments.rounds
        self._steps = {
            "minidist": Steps(2, arguments.minidist_steps),
            "distillation": Steps(2, arguments.trl_steps),
            "gkd": Steps(1, arguments.trl_steps),
        }

    def record(self) -> dict[str, Any]:
        """All figures. Raises SystemExit where the losses do not agree."""
        print(f"{self._prepared.workload.name}, {self._dtype}", flush=True)
        runs: dict[str, list[Measured]] = {way: [] for way in (*OWN, *self._ways)}
        parity: dict[str, float] = {}
        rates = [limit.product_rate(self._dtype)]
        for turn in range(self._rounds):
            for way in runs:
                folder = self._folder(f"{way}{turn}")
                measured = self._run(way, folder)
                runs[way].append(measured)
                if not parity:  # minidist's first run wrote the answers
                    parity = self._parity(measured, answers_of(folder))
                print(
                    f"  {way}: {measured.step_s:.2f} s a step, {measured.tokens_per_s:,.0f} useful tokens/s, "
                    f"{measured.peak_bytes / report.GIB:.2f} GiB",
                    flush=True,
                )
                rates.append(limit.product_rate(self._dtype))
        middle = {way: self._phases(runs[way]) for way in OWN}
        ways = {way: report.WayResult.of(found) for way, found in runs.items()}
        found = report.record(ways, self._limit(max(rates)), middle, parity)
        for way in OWN:
            own = found.get(way, found)
            for name in ("ratio_to_fastest_peer", "memory_ratio", "ratio_to_flop_limit", "limit_s"):
                print(f"  {way}, {name}: {own[name]:.3f}", flush=True)
        return found

    def _phases(self, runs: list[Measured]) -> dict[str, float]:
        """Median seconds of each phase over a way's runs."""
        medians = [phases(run.lines, self._steps["minidist"]) for run in runs]
        return {name: statistics.median(each.get(name, 0.0) for each in medians) for name in medians[0]}

    def _run(self, way: str, folder: Path) -> Measured:
        if way in OWN:
            return run_minidist(self._prepared, folder, self._dtype, self._steps["minidist"], OWN[way])
        steps = self._steps[way]
        return run_peer(self._task(way, folder, steps=steps.total), folder, steps)

    def _parity(self, measured: Measured, answers: Path) -> dict[str, float]:
        """Relative differences of the trainers' losses from the loss that minidist trained on in its first step."""
        own, found = measured.lines[0]["loss/nats_per_token"], {}
        for way in self._ways:
            folder = self._folder(f"parity-{way}")
            peer = losses_of(self._task(way, folder, answers=str(answers)), folder)
            found[way] = abs(peer["loss"] / own - 1)
            losses = f"minidist {own:.6f}, {way} {peer['loss']:.6f}, relative difference {found[way]:.1e}"
            print(f"  loss on the same {peer['tokens']:.0f} tokens: {losses}", flush=True)
            if peer["tokens"] != measured.lines[0]["learner/loss_tokens"] or found[way] > PARITY[self._dtype]:
                raise SystemExit(f"the losses of minidist and {way} differ on identical tokens: no times are reported")
        return found

    def _task(self, way: str, folder: Path, *, steps: int = 0, answers: str | None = None) -> PeerTask:
        prepared, workload = self._prepared, self._prepared.workload
        settings: PeerSettings = workload.peers[self._dtype][way]
        paths = str(prepared.student), str(prepared.teacher), str(prepared.prompts)
        return PeerTask(way, *paths, workload.max_new_tokens, settings, str(folder / "output.jsonl"), steps, answers)

    def _limit(self, rate: float) -> report.Limit:
        """Of the answers of minidist's first step, at the `rate` of matrix products, FLOP/s."""
        prepared = self._prepared
        tokenizer = AutoTokenizer.from_pretrained(prepared.student)
        rows = [json.loads(line) for line in answers_of(prepared.folder / self._dtype / "minidist0").read_text().splitlines()]
        lengths = [(len(tokenizer(row["prompt"])["input_ids"]), len(row["tokens"])) for row in rows]
        operations = limit.step_operations(*limit.costs(prepared.student, prepared.teacher), lengths)
        return report.Limit(operations, sum(answer for _, answer in lengths), rate)

    def _folder(self, name: str) -> Path:
        folder = self._prepared.folder / self._dtype / name
        folder.mkdir(parents=True)
        return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("workloads", nargs="*", choices=[[], *WORKLOADS], metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="bfloat16 only where it is native")
    parser.add_argument("--ways", nargs="+", choices=PEERS, default=PEERS, help="TRL's trainers")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which the ways take turns")
    parser.add_argument("--trl-steps", type=int, default=3, help="timed steps of a TRL trainer's run")
    parser.add_argument("--minidist-steps", type=int, default=20, help="timed steps of minidist's run")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
