"""Slow: a process of a split engine is killed, and the engine is started again with the weights that it had; a node is lost,
and the run goes on with fewer teachers."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from minidist.cluster.cluster import Cluster
from minidist.cluster.supervision import NoRoomError
from minidist.config.cluster import ClusterConfig, RolloutRoleConfig
from minidist.config.models import ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.roles.make import RoleContext, make_engine, make_teacher
from minidist.teachers.pool import Teachers
from minidist.types import Sampling
from tests.support.config import teacher_config
from tests.support.families import family_model, saved_family
from tests.support.tiny import random_rollouts, tiny_renderer

ROLLOUTS = random_rollouts([(3, 4), (1, 9), (6, 1)])
PROMPTS = [each.prompt for each in ROLLOUTS]
SAMPLING = Sampling(samples=4, max_new_tokens=30, seed=3)


def workers() -> list[int]:
    """Ids of the processes over which vLLM has split the model of this one."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "VLLM::Worker" in " ".join(child.cmdline())]


@pytest.mark.timeout(300)
def test_an_engine_of_which_one_process_is_killed_is_started_again_with_its_weights(tmp_path: Path) -> None:
    saved_family("llama", tmp_path / "old")
    family_model("llama", seed=7).save_pretrained(tmp_path / "new")
    config = ClusterConfig(rollout=RolloutRoleConfig(tensor_parallel=2))
    context = RoleContext(tiny_renderer(), max_tokens=64, split={"tensor_parallel": 2}, deterministic=True)
    arguments: dict[str, Any] = {"model": ModelConfig(model=str(tmp_path / "old")), "rollout": RolloutConfig()}
    arguments["context"] = context

    async def run() -> None:
        async with Cluster(config, tmp_path / "logs", ("rollout",)) as cluster:
            engine = cluster.supervise([await cluster.host("rollout", make_engine, **arguments)], make_engine, arguments)
            await engine.load(tmp_path / "new")
            expected = await engine.generate(PROMPTS, SAMPLING)
            first, actor = engine.role, await engine.role.ask(os.getpid)
            for after_s in (0.0, 0.05):  # idle, and as it writes
                pids = await engine.role.ask(workers)
                assert len(pids) == 2
                calling = asyncio.ensure_future(engine.generate(PROMPTS, SAMPLING)) if after_s else None
                await asyncio.sleep(after_s)
                os.kill(pids[1], signal.SIGKILL)
                found = await (calling or engine.generate(PROMPTS, SAMPLING))
                for one, other in zip(found, expected, strict=True):
                    assert one.tokens.tolist() == other.tokens.tolist()
                assert not any(psutil.pid_exists(pid) for pid in pids)
            assert engine.role is not first and await engine.role.ask(os.getpid) != actor
            assert cluster.restarts.summary() == {"supervision": {"restarts": {"rollout": 2}}}

    asyncio.run(run())


@pytest.mark.timeout(300)
def test_a_run_goes_on_without_a_teacher_whose_node_is_lost(tmp_path: Path) -> None:
    """Two nodes with room for one teacher each; no other has room for the lost one."""
    saved_family("llama", tmp_path / "model")
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    other = nodes.add_node(num_cpus=4)
    fields = {"address": nodes.address, "placement": "strict_spread", "start_timeout_s": 30}
    config = ClusterConfig.model_validate(fields | {"teacher": {"actors": 2, "cpus": 3}})
    arguments: dict[str, Any] = {"context": RoleContext(tiny_renderer(), max_tokens=64)}
    arguments["config"] = teacher_config(model=str(tmp_path / "model"), payload="sampled")

    async def run() -> None:
        async with Cluster(config, tmp_path / "logs", ("teacher",)) as cluster:
            hosted = [await cluster.host("teacher", make_teacher, **arguments) for _ in range(2)]
            members: list[Any] = [cluster.supervise([each], make_teacher, arguments) for each in hosted]
            teachers = Teachers(members)
            expected = await teachers.score(ROLLOUTS)
            [lost] = [member for member in members if member.role.process.node == other.node_id]
            nodes.remove_node(other, allow_graceful=False)
            while psutil.pid_exists(lost.role.process.pid):  # it outlives its raylet by a moment
                await asyncio.sleep(0.1)
            found = await teachers.score(ROLLOUTS)
            for one, wanted in zip(found, expected, strict=True):
                assert np.abs(one.logprobs - wanted.logprobs).max() < 1e-5
            assert len(teachers.members) == 2 and not lost.ready, "it is waited for beside the work"
            with pytest.raises(NoRoomError, match=r"the cluster has had no room for the teacher . again in 30 s"):
                await lost.recovered()
            await teachers.score(ROLLOUTS)
            assert teachers.members == [member for member in members if member is not lost]
            assert cluster.restarts.figures(cluster.supervised) == {"cluster/teacher_actors": 1.0}
            assert cluster.restarts.summary() == {"supervision": {"given_up": [lost.name]}}

    try:
        asyncio.run(run())
    finally:
        ray.shutdown()
        nodes.shutdown()
