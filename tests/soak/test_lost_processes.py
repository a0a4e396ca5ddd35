"""Slow: a process of a split engine is killed, and the engine is started again with the weights that it had."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from minidist.cluster.cluster import Cluster
from minidist.config.cluster import ClusterConfig, RolloutRoleConfig
from minidist.config.models import ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.roles.make import RoleContext, make_engine
from minidist.types import Sampling
from tests.support.families import family_model, saved_family
from tests.support.tiny import random_rollouts, tiny_renderer

PROMPTS = [each.prompt for each in random_rollouts([(3, 4), (1, 9), (6, 1)])]
SAMPLING = Sampling(samples=4, max_new_tokens=30, seed=3)


def workers() -> list[int]:
    """Ids of the processes over which vLLM has split the model of this one."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]


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
