"""Slow: a model over two nodes, as far as a CPU shows it: Ray counts devices that are not there, vLLM deals workers to them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from minidist.cluster.cluster import Cluster
from minidist.config.cluster import ClusterConfig, Role

ROLES: tuple[Role, ...] = ("teacher", "learner")


@pytest.fixture
def nodes() -> Iterator[str]:
    """The address of a cluster of two nodes that claim two GPUs each."""
    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2, num_gpus=2)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def dealt() -> list[tuple[int, str]]:
    """In the actor: the bundles and nodes to which vLLM would deal the ranks of four workers."""
    from vllm.config import ParallelConfig
    from vllm.platforms import current_platform
    from vllm.v1.executor.ray_utils import get_bundles_sorted_by_node, initialize_ray_cluster

    type(current_platform).ray_device_key = "GPU"  # a CPU has none, and the workers are not started
    backend: Any = "ray"
    config = ParallelConfig(tensor_parallel_size=2, pipeline_parallel_size=2, distributed_executor_backend=backend)
    initialize_ray_cluster(config, require_gpu_on_driver=False)
    assert config.placement_group is not None
    return [(bundle, node) for bundle, node, _ in get_bundles_sorted_by_node(config.placement_group)]


@pytest.mark.timeout(300)
def test_vllm_deals_the_workers_of_a_model_to_the_devices_that_were_set_aside_for_it(nodes: str, tmp_path: Path) -> None:
    split = {"tensor_parallel": 2, "pipeline_parallel": 2, "across_nodes": True}
    config = ClusterConfig.model_validate({"address": nodes, "gpus": 4, "teacher": split, "learner": {"gpus": 0}, "threads": 1})
    config.host(ROLES)

    async def run() -> list[tuple[int, str]]:
        async with Cluster(config, tmp_path / "logs", ROLES) as cluster:
            assert cluster.actors is not None
            teacher, learner = cluster.actors.seat("teacher"), cluster.actors.seat("learner")
            assert (await teacher.ask(ray.get_gpu_ids), await learner.ask(ray.get_gpu_ids)) == ([], [])
            return await teacher.ask(dealt)

    found = asyncio.run(run())
    assert sorted(bundle for bundle, _ in found) == [0, 1, 2, 3]
    ranks = [node for _, node in found]
    assert ranks[0] == ranks[1] and ranks[2] == ranks[3] and ranks[0] != ranks[2], "each layer is split within one node"
