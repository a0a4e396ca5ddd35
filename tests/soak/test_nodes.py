"""Slow: a whole run over two Ray nodes, which stand on one machine here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table

from tests.integration.conftest import SHAPE
from tests.integration.test_runs import distill, sft, write
from tests.support.commands import run

LIMIT = 900  # seconds: nine actors start on two cores


@pytest.mark.timeout(LIMIT)
def test_two_of_each_role_over_two_nodes(nodes: str, tmp_path: Path) -> None:
    for name, rows, steps, seed in (("teacher", 4000, 150, 1), ("student", 200, 40, 2)):
        done = run("sft", write(tmp_path / f"{name}.yaml", sft(tmp_path, name, SHAPE, rows, steps, seed)))
        assert done.returncode == 0, done.stderr
    # Paths that start from the directory in which the command is given, which is not that of the raylets.
    config = json.loads(json.dumps(distill(tmp_path, "nodes", 20)).replace(f"{tmp_path}/", ""))
    config["learner"] |= {"zero_stage": 3}
    config["cluster"] = {
        "address": nodes,
        "placement": "spread",
        "threads": 1,
        "rollout": {"actors": 2},
        "teacher": {"actors": 2},
        "learner": {"ranks": 2},
    }
    command = [sys.executable, "-m", "minidist.cli", "distill", str(write(tmp_path / "nodes.yaml", config))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    ray.init(address=nodes, log_to_driver=False, logging_level="ERROR")
    homes: set[str] = set()
    try:
        while process.poll() is None:
            homes |= {
                node for group in placement_group_table().values() for node in group["bundles_to_node_id"].values() if node
            }
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.kill()
    assert process.stderr is not None
    assert process.returncode == 0, process.stderr.read()
    assert len(homes) == 2
    summary = json.loads((tmp_path / "nodes" / "summary.json").read_text())
    before, after = summary["evaluations"][0], summary["evaluations"][-1]
    assert after["reverse_kl"] < before["reverse_kl"]
    assert (summary["engine"]["actors"], summary["teacher"]["actors"], summary["learner"]["ranks"]) == (2, 2, 2)
    assert summary["syncs_proved"] == 21
