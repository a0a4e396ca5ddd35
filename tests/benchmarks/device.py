"""One timing on a GPU: `python -m tests.benchmarks.device [--gpus N] [--small]`, part of `make gpu`.

Reverse KL on 32 prompts a step, written by the student, in bfloat16: minidist's roles on one device, and TRL's trainer on the
same models, where TRL is installed. Random weights, answers of equal length. `--gpus 0 --small` does the same on a CPU, so that
the script stays whole.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.runs import Measured, Steps, phases, run_minidist, run_peer
from tests.benchmarks.peers.trl_side import PeerTask
from tests.benchmarks.peers.workloads import EQUAL, PeerSettings, Prepared, Workload, llama

RESULTS = Path("runs/bench/device.json")
STEPS = Steps(2, 5, 1)
LARGE = replace(
    EQUAL,
    name="device",
    student=llama(1024, 16, seed=1),
    teacher=llama(2048, 20, seed=2),
    max_new_tokens=256,
)
"""A student of 0.2 and a teacher of 1.1 billion parameters."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.device", description=__doc__)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="models of 4 and 27 million parameters")
    arguments = parser.parse_args()
    workload = EQUAL if arguments.small else LARGE
    with tempfile.TemporaryDirectory(prefix="device-") as folder:
        record = measure(workload, Path(folder), arguments.gpus)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(f"result: {RESULTS}")


def measure(workload: Workload, folder: Path, gpus: int) -> dict[str, Any]:
    """Seconds a step of minidist, in all and of each phase, and of TRL's trainer."""
    prepared = workload.prepare(folder)
    shares = ["rollout.gpu_memory_utilization=0.3", "teacher.gpu_memory_utilization=0.3"]
    own = run_minidist(prepared, _made(folder / "minidist"), "bfloat16", STEPS, [f"cluster.gpus={gpus}", *shares])
    found: dict[str, Any] = {"workload": workload.name, "gpus": gpus, "minidist": _figures(own) | phases(own.lines, STEPS)}
    if find_spec("trl") is None:
        print("TRL is not installed: no peer is timed")
    else:
        found["trl"] = _figures(run_peer(_task(prepared, _made(folder / "trl"), gpus), folder / "trl", STEPS))
        found["ratio"] = found["minidist"]["tokens_per_s"] / found["trl"]["tokens_per_s"]
    for name, value in found.items():
        print(f"{name}: {value}")
    return found


def _task(prepared: Prepared, folder: Path, gpus: int) -> PeerTask:
    """DistillationTrainer, all 32 rows at once."""
    paths = str(prepared.student), str(prepared.teacher), str(prepared.prompts)
    settings = PeerSettings(32, weights="bfloat16", autocast=True)
    output = str(folder / "output.jsonl")
    return PeerTask("distillation", *paths, prepared.workload.max_new_tokens, settings, output, STEPS.total, use_cpu=not gpus)


def _figures(run: Measured) -> dict[str, float]:
    return {"step_s": run.step_s, "tokens_per_s": run.tokens_per_s}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
