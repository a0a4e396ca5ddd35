"""Ray and the actors of one run: started together, each in the bundle of its role, and ended with the run."""

import asyncio
import logging
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from minidist.cluster.access import check_token
from minidist.cluster.health import RayHealth
from minidist.cluster.heartbeat import Heartbeats
from minidist.cluster.joined import SharedDirectory
from minidist.cluster.killing import kill
from minidist.cluster.machine import actor_cpus, cores, thread_environment
from minidist.cluster.remote import HEARTBEAT, Host, Remote
from minidist.cluster.supervision import NoRoomError
from minidist.config.cluster import ClusterConfig, Role, homes
from minidist.errors import ConfigError
from minidist.run.tracking import log

_RAY = "ray"
"""Ray's directory in that of the run."""


class Actors:
    """A Ray cluster, joined or started, with room for all actors of the run, which is set aside at once.

    Roles that take turns may each use all cores, but none may spin for long while it waits: a spinning OpenMP pool takes the
    cores from the role that works. Roles that work at the same time share the cores (`at_once`, see
    `StageSection.roles_at_once`): with more threads than cores, every parallel region would wait for one that has none.
    """

    def __init__(self, config: ClusterConfig, roles: Sequence[Role], at_once: Mapping[str, int] | None = None) -> None:
        self._config = config
        self._at_once = at_once or {}
        self.bundles = config.bundles(roles)
        """The role of each actor."""
        self.homes = homes(config, self.bundles)
        self._groups: list[Any] = []
        self._places: dict[int, tuple[Any, int]] = {}
        """The placement group of each home, and the bundle in it where the home's actors are."""
        self._shared: SharedDirectory | None = None
        self._seated: dict[int, Remote] = {}
        """The actors that there are, by their index among `bundles`."""

    def start(self, scratch: Path, directory: Path) -> None:
        """Start Ray, or join the cluster at cluster.address, and reserve a bundle for every actor. `directory`: of the run."""
        self._scratch = scratch
        logging.getLogger("ray").setLevel(logging.ERROR)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if self._config.address is not None:
            check_token(self._config.address, "cluster.address")
            ray.init(address=self._config.address, **quiet)
            self._shared = SharedDirectory.marked(directory)
        else:
            os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
            with _own_group(), nullcontext() if self._config.prometheus is not None else _without_metrics():
                close_token()
                ray.init(
                    address="local",  # a cluster of this run, whatever RAY_ADDRESS says
                    num_cpus=cores(),
                    num_gpus=self._config.gpus,
                    include_dashboard=False,
                    object_store_memory=int(self._config.object_store_gib * 2**30),
                    _temp_dir=str(scratch / _RAY),  # Ray opens its directory to all; `scratch`, around it, is closed
                    _node_ip_address="127.0.0.1",
                    _metrics_export_port=self._config.prometheus,
                    **quiet,
                )
            close_token()
        self.health = RayHealth(self._config)
        self._reserve()

    def _reserve(self) -> None:
        """Set aside a bundle for each home, all in one placement group but for those of models that may span nodes: vLLM takes
        every bundle of the group of its actor, and wants one of each device."""
        bundles: list[dict[str, float]] = [{"CPU": 0, "GPU": 0} for _ in range(len(set(self.homes)))]
        spans: dict[int, int] = {}
        for home, role in zip(self.homes, map(self._config.role, self.bundles), strict=True):
            bundles[home]["CPU"] += actor_cpus(self._config, role)
            shared = self._config.shared_devices > 0 and role.gpus is None
            bundles[home]["GPU"] = 1 if shared or role.spans_nodes else self._config.gpus_of(role)
            if role.spans_nodes:
                spans[home] = role.devices
        bundles = [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]
        together = [home for home in range(len(bundles)) if home not in spans]
        reserved = list(bundles)
        for home, devices in spans.items():  # first: they want whole nodes
            others: list[dict[str, float]] = [{"GPU": 1}] * (devices - 1)
            reserved += others
            self._group([home], [bundles[home], *others], "pack")
        self._group(together, [bundles[home] for home in together], self._config.placement)
        _await(self._groups, reserved, len(self.bundles), self._config.start_timeout_s)

    def _group(self, homes: list[int], bundles: list[dict[str, float]], strategy: str) -> None:
        """Ask Ray for a placement group whose first bundles are those of `homes`."""
        if bundles:
            self._groups.append(placement_group(bundles, strategy=strategy.upper()))
            self._places |= {home: (self._groups[-1], index) for index, home in enumerate(homes)}

    def seat(self, role: Role) -> Remote:
        """An empty actor in the next free bundle of its role."""
        bundle = next(i for i, name in enumerate(self.bundles) if name == role and i not in self._seated)
        return self._seat(bundle)

    async def reseat(self, lost: Remote) -> Remote:
        """An empty actor in the bundle of one that is lost, whose process is killed. Raises NoRoomError where the cluster has
        lost the bundle's node, and no other has room for it."""
        # By name: another one may have been lost there since, as it started.
        bundle, seated = next((bundle, seated) for bundle, seated in self._seated.items() if seated.name == lost.name)
        seated.lose("is replaced")
        await kill(seated)
        remote = self._seat(bundle, seated)
        await placed(remote, self._config.start_timeout_s, f"and it was lost ({lost.lost})")
        return remote

    def heartbeats(self) -> Heartbeats:
        """Asks all actors for signs of life, and kills those that hang."""
        return Heartbeats(self._config.supervision, lambda: self.seated, kill)

    def role_of(self, remote: Remote) -> Role:
        """The role of a seated actor."""
        return next(self.bundles[bundle] for bundle, seated in self._seated.items() if seated is remote)

    def _seat(self, bundle: int, before: Remote | None = None) -> Remote:
        """An empty actor in a bundle; `before`: the one that was there."""
        role = self.bundles[bundle]
        config = self._config.role(role)
        group, index = self._places[self.homes[bundle]]
        options = {
            "num_cpus": actor_cpus(self._config, config),
            # The devices of a model that spans nodes are for the processes that vLLM starts on them.
            "num_gpus": 0 if config.spans_nodes else self._config.gpus_of(config),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        }
        remote: Any = ray.remote  # whose stubs know no concurrency groups
        host = remote(concurrency_groups={HEARTBEAT: 1})(Host)
        actor = host.options(**options).remote(self._environment(role), self._shared)
        number = sum(name == role for name in self.bundles[:bundle])
        name = f"{role} {number}" if self.bundles.count(role) > 1 else role
        facts: dict[str, Any] = {} if self._config.address is None else {"output": "the logs of Ray on its node (ray logs)"}
        limits = self._config.supervision
        if limits.enabled:
            facts |= {"call_s": limits.call_timeout_s, "start_s": limits.start_timeout_s}
        self._seated[bundle] = Remote(name, actor, before=before, **facts)
        return self._seated[bundle]

    @property
    def seated(self) -> list[Remote]:
        """The actors, in the order of their bundles."""
        return [self._seated[bundle] for bundle in sorted(self._seated)]

    async def meeting(self, ranks: Sequence[Any]) -> str:
        """Where the ranks of a group meet: at an address of the first; on one machine, in a file."""
        if self._config.address is not None:  # ranks on other machines share no directory
            return await ranks[0].ask(_free_address)
        return f"file://{self._scratch}/ranks-{uuid.uuid4().hex}"  # where no ranks have met before

    def dismiss(self, role: Any) -> None:
        """End the actor of a role; its bundle is free again."""
        for bundle in [bundle for bundle, seated in self._seated.items() if seated is role]:
            ray.kill(self._seated.pop(bundle).actor)

    def end(self, *, lost: bool = False) -> None:
        """End all actors, and Ray with them. `lost`: Ray has died or hangs, and is asked for nothing."""
        if self._shared is not None:
            self._shared.mark.unlink(missing_ok=True)
        if not ray.is_initialized():
            return
        if lost:
            self.health.kill()
        for seated in () if lost else self._seated.values():
            ray.kill(seated.actor)
        for group in () if lost else self._groups:
            remove_placement_group(group)
        ray.shutdown()

    def keep_logs(self, folder: Path) -> None:
        """Copy the actors' output from Ray's session to `folder`."""
        found = [file for file in self._scratch.glob(f"{_RAY}/session_2*/logs/worker-*") if file.stat().st_size]
        if found:
            folder.mkdir(parents=True, exist_ok=True)
            for file in found:
                shutil.copy(file, folder / file.name)
            log.info("the actors' output is in %s", folder)

    def _environment(self, role: Role) -> dict[str, str]:
        """Variables that an actor sets before it imports torch: with a runtime_env of its own, it would wait for a process that
        Ray starts for it, while those that Ray has started already stay idle."""
        # The actors of one role work at the same time.
        config, roles = self._config.role(role), self._at_once.get(role, 1)
        busy = roles * self._config.processes_of(role) * config.devices
        threads = self._config.threads or max(1, cores() // busy)
        variables = thread_environment(threads) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if self._config.address is None:
            variables |= {"TMPDIR": str(self._scratch), "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        return variables


async def placed(remote: Remote, seconds: float, why: str = "and has lost a node") -> None:
    """Wait until an actor has a process. Raises NoRoomError where the cluster has lost a node and no other has room."""
    try:
        async with asyncio.timeout(seconds):
            await remote.beat()
    except TimeoutError:
        ray.kill(remote.actor)
        text = f"the cluster has had no room for the {remote.name} again in {seconds:g} s, {why}"
        raise NoRoomError(f"{text}; add a node, or raise cluster.start_timeout_s", remote.name) from None


def _await(groups: Sequence[Any], bundles: Sequence[Mapping[str, float]], count: int, seconds: float) -> None:
    """Wait until Ray has set aside all groups, which have these bundles for so many actors. Raises ConfigError."""
    until = time.monotonic() + seconds
    if not all(group.wait(max(1.0, until - time.monotonic())) for group in groups):
        wanted = ", ".join(f"{sum(bundle.get(name, 0) for bundle in bundles):g} {name}" for name in ("CPU", "GPU"))
        found = ", ".join(f"{ray.cluster_resources().get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        raise ConfigError(
            f"no room for the run's {count} actors ({wanted}) in {seconds:g} s: the cluster has {found} in all; lower the "
            "counts or shares under cluster, or set cluster.placement=pack"
        )


def close_token() -> None:
    """Let nobody else read the file of Ray's token, which alone keeps others from running code in this run: Ray's ports are
    open on every interface, and Ray writes the file for all to read."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with suppress(OSError):
        if file.is_file() and file.stat().st_uid == os.getuid():
            file.chmod(0o600)


def _free_address() -> str:
    """A port of this node that was free a moment ago, at which the ranks of a group meet."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"


@contextmanager
def _without_metrics() -> Iterator[None]:
    """A cluster started inside has no metrics agent, which would take 100 MiB and 1 % of a core: by this import Ray learns
    whether one can run."""
    name = "ray.dashboard.optional_deps"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update({} if before is None else {name: before})


@contextmanager
def _own_group() -> Iterator[None]:
    """Processes started inside get a process group of their own.

    A signal to a job's whole group (from a scheduler, or `timeout`) would otherwise end Ray before the last checkpoint is
    written.
    """
    group = os.getpgrp()
    if os.getpid() == os.getsid(0):  # the leader of a session cannot leave its group, and need not: it has no terminal
        yield
        return
    os.setpgid(0, 0)
    try:
        yield
    finally:
        os.setpgid(0, group)
