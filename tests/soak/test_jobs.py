"""Slow: a job on a Ray cluster of three nodes, which stand on one machine here, of which one is lost."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from minidist.cluster.jobs import JobService
from minidist.config import load
from minidist.stages.jobs import last_step, submit
from tests.integration.conftest import SHAPE, save_model
from tests.integration.test_runs import distill, write
from tests.support.ray_head import free_ports

LIMIT = 600  # seconds
STEPS = 60


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Room for three actors on the head, and for one on each of two other nodes."""
    (tmp_path / "raylets").mkdir()
    monkeypatch.chdir(tmp_path / "raylets")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    [port] = free_ports(1)
    own: dict[str, Any] = {"object_store_memory": 200_000_000, "dashboard_agent_listen_port": 0}
    head = {"num_cpus": 3, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head | own)
    for _ in range(2):
        cluster.add_node(num_cpus=1, **own)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def lose(node: Any) -> None:
    """SIGKILL to all processes of a node, workers first: a node that has lost its power says nothing to anyone."""
    raylets = [psutil.Process(each.process.pid) for each in node.all_processes["raylet"]]
    doomed = [child for raylet in raylets for child in raylet.children(recursive=True)] + raylets
    for process in doomed:
        process.suspend()
    for process in doomed:
        process.kill()


def spare(cluster: Cluster, config: Any) -> Any:
    """A node beside the head that holds a rollout engine or a teacher, of which there are others, and not the learner."""
    [group] = [each for each in placement_group_table().values() if each["state"] == "CREATED"]
    learner = config.cluster.bundles(config.hosted).index("learner")
    held = group["bundles_to_node_id"]
    return next(node for node in cluster.worker_nodes if node.node_id in held.values() and node.node_id != held[learner])


@pytest.mark.timeout(LIMIT)
def test_a_job_that_loses_a_node_completes(three: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("student", 1), ("teacher", 2)):
        save_model(tmp_path / name / "final", SHAPE, seed)
    config = distill(tmp_path, "job", STEPS)
    config["rollout"] |= {"engine": "hf"}
    config["learner"] |= {"backend": "single"}
    config["cluster"] = {
        "threads": 1,
        "placement": "spread",
        "start_timeout_s": 30,
        "rollout": {"actors": 2},
        "teacher": {"actors": 2},
        "supervision": {"heartbeat_s": 1, "heartbeat_timeout_s": 30},
    }
    file = write(tmp_path / "job.yaml", config)
    monkeypatch.chdir(tmp_path)
    address = three.head_node.webui_url
    job = submit(file, [], address)
    assert job is not None
    service, until = JobService(address), time.monotonic() + LIMIT / 2
    while (last_step(tmp_path / "job") or 0) < 3 and time.monotonic() < until:
        assert not service.job(job.id).over, service.logs(job.id)
        time.sleep(0.5)
    ray.init(address=three.address, log_to_driver=False, logging_level="ERROR")
    lose(spare(three, load(file)))
    assert not service.job(job.id).over
    ended = service.wait(job.id)
    assert ended.status == "SUCCEEDED", service.logs(job.id)
    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert summary["steps"] == STEPS
    figures = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in figures if "learner/loss_tokens" in each] == list(range(STEPS)), "each once"
    assert sum(node["Alive"] for node in ray.nodes()) == 2
