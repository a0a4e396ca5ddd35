"""Which devices Ray gives to actors that share them. The devices are counted, not used: this runs on a CPU too."""

import asyncio
from pathlib import Path

import ray

from minidist.cluster.cluster import Cluster
from minidist.config.cluster import ClusterConfig, Role


def test_no_two_ranks_of_a_learner_get_the_same_device(tmp_path: Path) -> None:
    config = ClusterConfig.model_validate({"gpus": 2, "learner": {"ranks": 2}})
    roles: tuple[Role, ...] = ("rollout", "teacher", "learner")
    config.host(roles)

    async def devices() -> dict[str, int]:
        async with Cluster(config, tmp_path / "logs", roles) as cluster:
            assert cluster.actors is not None
            seats = [cluster.actors.seat(role) for role in ("rollout", "teacher", "learner", "learner")]
            given = [await seat.ask(ray.get_gpu_ids) for seat in seats]
            return {seat.name: int(only) for seat, [only] in zip(seats, given, strict=True)}

    found = asyncio.run(devices())
    assert found["learner 0"] != found["learner 1"]
    assert found["rollout"] != found["teacher"]
