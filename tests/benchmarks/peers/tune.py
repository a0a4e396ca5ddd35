"""The settings of TRL's trainers that were tried: `python -m tests.benchmarks.peers.tune [WORKLOAD ...]`.

Each candidate trains a few steps in a process of its own. The table goes to peers/settings.json; the fastest setting of each
trainer is to stand in workloads.py, from which the suite takes it.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.limit import has_native_bfloat16
from tests.benchmarks.peers.runs import Steps, run_peer
from tests.benchmarks.peers.trl_side import PeerTask
from tests.benchmarks.peers.workloads import PEERS, WORKLOADS, PeerSettings, Prepared

ROWS = (32, 16, 8, 4, 1)
"""Rows of a micro-batch: fewer rows have less padding and smaller matrix products."""
STEPS = Steps(1, 2, 1)
TABLE = Path(__file__).with_name("settings.json")


def candidates() -> list[PeerSettings]:
    """All that is tried.

    Always on are the key-value cache and, in `DistillationTrainer`, the loss in chunks and the writing of all 32 answers at
    once; activations are never recomputed. TRL's vLLM does not work on a CPU: its weights travel over NCCL, or through a method
    that vLLM has not there.
    """
    plain = [PeerSettings(rows) for rows in ROWS]
    if not has_native_bfloat16():
        return plain
    mixed = [PeerSettings(rows, autocast=True) for rows in ROWS]
    return [*plain, *mixed, *(PeerSettings(rows, weights="bfloat16", autocast=True) for rows in ROWS)]


def main() -> None:
    found: list[dict[str, Any]] = json.loads(TABLE.read_text()) if TABLE.exists() else []
    with tempfile.TemporaryDirectory(prefix="tune-") as folder:
        for name in sys.argv[1:] or WORKLOADS:
            directory = Path(folder) / name
            directory.mkdir()
            prepared = WORKLOADS[name].prepare(directory)
            for trainer in PEERS:
                for settings in candidates():
                    row = tried(prepared, trainer, settings)
                    found = [each for each in found if _key(each) != _key(row)] + [row]
                    print(json.dumps(row), flush=True)
                    TABLE.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")


def tried(prepared: Prepared, trainer: str, settings: PeerSettings) -> dict[str, Any]:
    """What a setting does: seconds of a step, useful tokens a second, and GiB."""
    with tempfile.TemporaryDirectory() as name:
        folder, paths = Path(name), (str(prepared.student), str(prepared.teacher), str(prepared.prompts))
        output = str(folder / "output.jsonl")
        task = PeerTask(trainer, *paths, prepared.workload.max_new_tokens, settings, output, STEPS.total)
        measured = run_peer(task, folder, STEPS)
    speed = {"step_s": round(measured.step_s, 2), "tokens_per_s": round(measured.tokens_per_s, 1)}
    memory = {"memory_gib": round(measured.peak_bytes / 2**30, 2)}
    return {"workload": prepared.workload.name, "trainer": trainer, **asdict(settings), **speed, **memory}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("workload", "trainer", "rows", "weights", "autocast"))


if __name__ == "__main__":
    main()
