"""Metrics as gauges of Ray: their names, and what is refused before a run."""

import pytest
import ray._private.utils as ray_utils

from minidist.cluster import prometheus
from minidist.cluster.actors import _without_metrics
from minidist.cluster.prometheus import PrometheusBoard, check_prometheus, gauge_name
from minidist.config.cluster import ClusterConfig
from minidist.errors import ConfigError


@pytest.mark.parametrize(
    ("metric", "name"),
    [("loss/nats_per_token", "minidist_loss_nats_per_token"), ("mix.a/rows-1", "minidist_mix_a_rows_1")],
)
def test_a_gauge_has_the_name_of_its_metric(metric: str, name: str) -> None:
    assert gauge_name(metric) == name


def test_a_board_without_ray_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    board = PrometheusBoard("runs/a")
    board.add(0, {"loss/nats_per_token": 1.0})
    board.close()


def test_the_packages_of_rays_agent_are_looked_for_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    check_prometheus(ClusterConfig(prometheus=0))
    monkeypatch.setattr(prometheus, "_AGENT", ("json", "opencensus_gone", "json_gone.exporter"))
    check_prometheus(ClusterConfig())
    with pytest.raises(ConfigError, match=r"opencensus_gone, json_gone.exporter not found.*pip install 'ray\[default\]'"):
        check_prometheus(ClusterConfig(prometheus=0))


def test_roles_in_this_process_have_no_gauges() -> None:
    with pytest.raises(ValueError, match=r"cluster.prometheus shows metrics through Ray; set cluster.roles=ray"):
        ClusterConfig.parse(roles="local", prometheus=0)


def test_a_cluster_of_a_run_without_gauges_starts_no_agent() -> None:
    assert ray_utils.get_dashboard_dependency_error() is None
    with _without_metrics():
        assert ray_utils.get_dashboard_dependency_error() is not None
    assert ray_utils.get_dashboard_dependency_error() is None
