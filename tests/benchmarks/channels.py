"""Publishing over a gloo channel against the object store: `python -m tests.benchmarks.channels`.

A learner and a vLLM engine, each in a Ray actor, the engine whole or split over two processes. First memory, over the channel
and then through the store: by how much the peak of each process's resident memory, pages of the object store among it, lies in
a third publication above what the process held before the first of all. Then seconds: medians of publications, proof included,
by either way in turn.
"""

import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from transformers import PreTrainedModel

from minidist.cluster.cluster import Cluster
from minidist.cluster.machine import cores
from minidist.config.cluster import ClusterConfig
from minidist.config.data import RenderConfig
from minidist.config.learner import LearnerConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.rollout import RolloutConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.roles.make import RoleContext, make_engine, make_learner
from minidist.roles.transfer import ChannelTransfer, ObjectStoreTransfer, ProvedTransfer
from tests.benchmarks.publish import llama
from tests.support.config import objective_config

RESULTS, ROUNDS, MIB = Path("runs/bench/channels.json"), 5, 2**20


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = llama(16000, 640, 8, 10)
        size = sum(parameter.nbytes for parameter in model.parameters()) / MIB
        _save(Path(folder), model)
        del model
        print(f"Llama, {size:.0f} MiB in float32, {cores()} threads; medians of {ROUNDS}; MiB above what a process held before")
        for processes in (1, 2):
            rows += asyncio.run(_measure(Path(folder), processes))
    for row in rows:
        memory = ", ".join(f"{name} {mib:.0f}" for name, mib in row["peak_mib"].items())
        print(f"{row['processes']} processes, {row['way']:<13}{row['seconds']:>7.3f} s   {memory}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"mib": size, "rows": rows}, indent=1))


def _save(folder: Path, model: PreTrainedModel) -> None:
    model.save_pretrained(folder)
    character_tokenizer("0123456789").save_pretrained(folder)


async def _measure(folder: Path, processes: int) -> list[dict[str, Any]]:
    renderer, model = Renderer(character_tokenizer("0123456789"), RenderConfig()), str(folder)
    context = RoleContext(renderer, max_tokens=256, transfer="gloo", split={"tensor_parallel": processes})
    config = ClusterConfig.model_validate({"object_store_gib": 4.0, "rollout": {"tensor_parallel": processes}})
    async with Cluster(config, folder / "logs", ["rollout", "learner"]) as cluster:
        learner: Any = await cluster.host(
            "learner",
            make_learner,
            context=context,
            student=StudentConfig(model=model),
            config=LearnerConfig(),
            objectives={"main": objective_config("supervised")},
            teacher=None,
        )
        served = ModelConfig(model=model)
        engine: Any = await cluster.host("rollout", make_engine, context=context, model=served, rollout=RolloutConfig())
        ways: dict[str, ProvedTransfer] = {
            "gloo": ChannelTransfer(5e-3, "gloo", processes=processes, timeout_s=300),
            "object store": ObjectStoreTransfer(5e-3),
        }
        pids = await _pids(learner, engine)
        held, peaks = {name: _status(pid, "VmRSS") for name, pid in pids.items()}, {}
        for way, transfer in ways.items():
            for _ in range(3):
                for pid in pids.values():
                    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is that from now on
                await transfer.publish(learner, [engine])
            peaks[way] = {name: (_status(pid, "VmHWM") - held[name]) / MIB for name, pid in pids.items()}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, transfer in ways.items():
                start = time.perf_counter()
                await transfer.publish(learner, [engine])
                seconds[way].append(time.perf_counter() - start)
    median = {way: statistics.median(taken) for way, taken in seconds.items()}
    return [{"processes": processes, "way": way, "seconds": median[way], "peak_mib": peaks[way]} for way in ways]


async def _pids(learner: Any, engine: Any) -> dict[str, int]:
    """The processes that hold weights, by what they are."""
    actor, *children = await engine.ask(_family)
    workers = [pid for pid in children if _status(pid, "VmRSS") > 256 * MIB]  # not those that watch over shared memory
    found = {"learner": await learner.ask(os.getpid), "engine": actor}
    return found | {f"part {number}": pid for number, pid in enumerate(workers)}


def _family() -> list[int]:
    process = psutil.Process()
    return [process.pid, *(child.pid for child in process.children(recursive=True))]


def _status(pid: int, field: str) -> int:
    """A figure of /proc/PID/status, bytes."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


if __name__ == "__main__":
    main()
