"""What slow tests share: two Ray nodes on one machine."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of two nodes with a CPU share for four actors each, whose raylets work in another directory."""
    monkeypatch.chdir(tmp_path_factory.mktemp("raylets"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    cluster.add_node(num_cpus=4)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def starting() -> None:
    """No server of the integration tests starts beside a slow test."""
