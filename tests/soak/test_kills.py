"""Slow: runs of a tiny distillation in which one process is killed, or stopped, at a random moment.

Each ends with the samples and, bit for bit, the weights of an undisturbed run, and leaves nothing behind. Environment variables
`KILLS`, `HANGS`: how many runs with SIGKILL and with SIGSTOP. `KILLS_SEED`: of all choices. A table is printed at the end.
"""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.integration import test_runs
from tests.integration.test_runs import Started, numbers, write
from tests.support.kills import Observed

models, nothing_left = test_runs.models, test_runs.nothing_left

KILLS, HANGS = int(os.environ.get("KILLS", "60")), int(os.environ.get("HANGS", "10"))
SEED = int(os.environ.get("KILLS_SEED", "0"))
STEPS = 10
LIMIT = 600
"""Seconds for one run, which starts its actors again on two cores that others may use."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"learner": {"ranks": 2}},
    "split": {"rollout": {"tensor_parallel": 2}},
    "nodes": {"placement": "spread", "rollout": {"actors": 2}, "learner": {"ranks": 2}},
}
"""Sections `cluster`. Only an engine that is split has processes of its own; only a joined cluster has nodes to lose."""
KINDS = {
    "rollout": "plain",
    "engine": "split",
    "teacher": "plain",
    "learner": "plain",
    "driver": "plain",
    "raylet": "plain",
    "gcs_server": "plain",
    "node": "nodes",
}
"""Kinds of processes, and the layout in which each is killed."""
HUNG = ("rollout", "engine", "teacher", "learner", "raylet", "gcs_server")
_SUPERVISION = {"heartbeat_s": 1, "heartbeat_timeout_s": 15}


def config(root: Path, name: str, layout: str, address: str | None) -> Path:
    tree = test_runs.distill(root, name, STEPS)
    tree["run"] |= {"deterministic": True, "checkpoint_every": 2, "rollouts_every": 1}
    tree["rollout"]["prompts_per_step"] = 16
    tree["evaluation"]["every"] = STEPS
    tree["cluster"] = {"threads": 1, "address": address, "supervision": _SUPERVISION} | LAYOUTS[layout]
    return write(root / f"{name}.yaml", tree)


def samples(directory: Path) -> dict[str, str]:
    """The prompts and answers of each step, as they were recorded."""
    return {file.name: file.read_text() for file in sorted((directory / "rollouts").iterdir())}


def course(directory: Path) -> list[dict[str, float]]:
    """The numbers of each step, but for the restarts of its actors."""
    return [{k: v for k, v in line.items() if not k.startswith("cluster/")} for line in numbers(directory)]


def check_samples(directory: Path) -> None:
    """Each step is recorded once, and has learned from as many tokens as were written for it."""
    lines = [line for line in test_runs.metrics(directory) if "loss/nats_per_token" in line]
    assert [line["step"] for line in lines] == list(range(STEPS))
    for line in lines:
        rows = [json.loads(row) for row in (directory / f"rollouts/step_{line['step'] + 1:06d}.jsonl").read_text().splitlines()]
        assert len(rows) == 16
        assert sum(len(row["tokens"]) for row in rows) == line["learner/loss_tokens"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head without room for actors, and two nodes."""
    with pytest.MonkeyPatch.context() as patch, unmarked():
        patch.chdir(tmp_path_factory.mktemp("raylets"))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


@contextmanager
def unmarked() -> Iterator[None]:
    """Processes that start inside are not those of a run: `nothing_left` does not look for them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (test_runs.MARK, "TMPDIR"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def table() -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    yield rows
    print(f"\n{'kind':10} {'signal':8} {'phase':12} {'after step':>10} {'seconds to recover':>20}")
    for row in rows:
        print(f"{row['kind']:10} {row['signal']:8} {row['phase']:12} {row['step']:>10} {row['seconds']:>20.1f}")
    for kind in sorted({(row["kind"], row["signal"]) for row in rows}):
        seconds = [row["seconds"] for row in rows if (row["kind"], row["signal"]) == kind]
        print(f"{kind[0]}, {kind[1]}: {len(seconds)} runs, median {np.median(seconds):.1f} s, longest {max(seconds):.1f} s")


_UNDISTURBED: dict[str, tuple[Path, int]] = {}


def undisturbed(root: Path, layout: str, address: str | None) -> tuple[Path, int]:
    """A run of a layout that nothing happens to, and the number of its events; made once."""
    if layout not in _UNDISTURBED:
        directory = root / f"undisturbed-{layout}"
        run = Observed(root / f"{directory.name}.events", "distill", config(root, directory.name, layout, address))
        assert run.command.wait(LIMIT).returncode == 0, run.command.stderr
        check_samples(directory)
        _UNDISTURBED[layout] = directory, len(run.events)
    return _UNDISTURBED[layout]


def with_nodes(cluster: Cluster) -> str:
    """The cluster's address, once two nodes with room for all actors stand."""
    with unmarked():
        while len(cluster.worker_nodes) < 2:
            cluster.add_node(num_cpus=8)
    cluster.wait_for_nodes()
    return cluster.address


def disturb(run: Observed, kind: str, number: signal.Signals, random: np.random.Generator, cluster: Cluster | None) -> float:
    """Send the signal to a process of the kind, or kill a node; when that was."""
    if kind == "node":
        assert cluster is not None
        nodes = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)
        at = time.time()
        cluster.remove_node(nodes[random.integers(len(nodes))], allow_graceful=False)
        return at
    return run.kill(kind, number, int(random.integers(100)))


CASES = [
    *((number, kind, signal.SIGKILL) for number, kind in zip(range(KILLS), list(KINDS) * KILLS, strict=False)),
    *((number, kind, signal.SIGSTOP) for number, kind in zip(range(HANGS), HUNG * HANGS, strict=False)),
]


@pytest.mark.timeout(3 * LIMIT)
@pytest.mark.parametrize(("number", "kind", "how"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_a_run_that_loses_a_process_ends_as_if_undisturbed(
    models: Path,
    nothing_left: Started,
    request: pytest.FixtureRequest,
    table: list[dict[str, Any]],
    number: int,
    kind: str,
    how: signal.Signals,
) -> None:
    layout, name = KINDS[kind], f"{how.name}-{number}-{kind}"
    cluster: Cluster | None = request.getfixturevalue("cluster") if layout == "nodes" else None
    address = None if cluster is None else with_nodes(cluster)
    expected, events = undisturbed(models, layout, address)
    random = np.random.default_rng([SEED, number, how])
    settings, directory = config(models, name, layout, address), models / name
    run = Observed(models / f"{name}.events", "distill", settings)
    try:
        moment = int(random.integers(1, int(0.85 * events)))
        run.wait(lambda: len(run.events) >= moment)
        time.sleep(random.random() / 3)
        at = disturb(run, kind, how, random, cluster)
        phase, step = run.phase(at), run.steps()
        errors = run.command.wait(LIMIT).stderr
        time.sleep(1)
        if kind == "driver" or (kind == "raylet" and "the same command resumes" in run.command.stderr.splitlines()[-1]):
            run = Observed(models / f"{name}.events", "distill", settings)
            errors = run.command.wait(LIMIT).stderr
    finally:
        run.command.process.kill()
    assert run.command.returncode == 0 and "Traceback" not in errors, errors
    table.append({"kind": kind, "signal": how.name, "phase": phase, "step": step, "seconds": run.recovered(at)})
    check_samples(directory)
    assert samples(directory) == samples(expected)
    assert course(directory) == course(expected)
    weights = [(each / "final" / "model.safetensors").read_bytes() for each in (directory, expected)]
    assert weights[0] == weights[1]
    assert actors_of(cluster) == []


@pytest.mark.timeout(LIMIT)
def test_a_joined_cluster_that_loses_its_control_store_ends_the_run_with_a_sentence(
    models: Path, nothing_left: Started
) -> None:
    """Ray's own end of such a process comes after 60 s, and is no sentence."""
    with unmarked():
        head = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False})
    run = Observed(models / "headless.events", "distill", config(models, "headless", "nodes", head.address))
    try:
        run.wait(lambda: run.steps() >= 3)
        head.head_node.kill_gcs_server()
        began = time.monotonic()
        errors = run.command.wait(60).stderr
    finally:
        run.command.process.kill()
        head.shutdown()
    print(f"found and ended in {time.monotonic() - began:.1f} s")
    assert run.command.returncode == 1 and "Traceback" not in errors, errors
    assert re.search(
        r"minidist: Ray's control store at .* has not answered for 15 s; start that cluster again, and give", errors
    )


def actors_of(cluster: Cluster | None) -> list[psutil.Process]:
    """Actors that outlive a run in a joined cluster; those of other runs are found by `nothing_left`."""
    for _ in range(20 if cluster else 0):
        found = [child for child in psutil.Process().children(recursive=True) if "ray::Host" in " ".join(child.cmdline())]
        if not found:
            return []
        time.sleep(0.5)
    return found if cluster else []
