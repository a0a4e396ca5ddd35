"""A run's metrics as gauges of Ray, which the metrics agent of each node shows to Prometheus."""

import math
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from minidist.config.cluster import ClusterConfig
from minidist.errors import ConfigError
from minidist.run.tracking import log

_AGENT = ("aiohttp_cors", "opencensus", "prometheus_client", "opentelemetry.exporter.prometheus")
"""Modules without which Ray's agents have no metrics."""


def check_prometheus(config: ClusterConfig) -> None:
    """Raise ConfigError where metrics are asked for that Ray cannot show."""
    if config.prometheus is None:
        return
    if missing := [name for name in _AGENT if not _found(name)]:
        raise ConfigError(
            f"cluster.prometheus: Ray shows no metrics without the packages of ray[default] ({', '.join(missing)} not found): "
            "python -m pip install 'ray[default]', or leave cluster.prometheus out"
        )


class PrometheusBoard:
    """The last value of each metric as a gauge, `ray_minidist_loss_nats_per_token{run="runs/mine"}` of loss/nats_per_token, and
    the number of steps taken as `ray_minidist_steps`. `run`: the tag of all. Writes nothing where no Ray runs."""

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._gauges: dict[str, Any] = {}

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        import ray

        if not ray.is_initialized():
            return
        if not self._gauges:
            log.info("metrics for Prometheus: %s", endpoint())
        for name, value in {"steps": step + 1, **metrics}.items():
            if not math.isnan(value):  # Ray drops the metric
                self._gauge(name).set(value, self._run)

    def close(self) -> None:
        """The gauges end with this process."""

    def _gauge(self, name: str) -> Any:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(gauge_name(name), f"{name} of a run of minidist", tag_keys=("run",))
        return self._gauges[name]


def gauge_name(metric: str) -> str:
    """The name of a metric's gauge, to which Ray adds `ray_`.

    >>> gauge_name("kl/reverse_nats")
    'minidist_kl_reverse_nats'
    """
    return f"minidist_{re.sub(r'[^a-zA-Z0-9_]', '_', metric)}"


def endpoint() -> str:
    """Where the agent of this process's node shows its metrics."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    found = next(each for each in ray.nodes() if each["NodeID"] == node)
    return f"http://{found['NodeManagerAddress']}:{found['MetricsExportPort']}/metrics"


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False
