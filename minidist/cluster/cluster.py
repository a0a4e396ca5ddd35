"""Where the roles live: in Ray actors, or in this process. What a run starts here ends with it."""

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from minidist.cluster.scratch import Scratch
from minidist.concurrency import together
from minidist.config.cluster import ClusterConfig, RoleConfig
from minidist.errors import ConfigError
from minidist.run.tracking import log
from minidist.types import RankGroup

T = TypeVar("T")
Role = Literal["rollout", "teacher", "learner"]


class Cluster:
    """Hosts the roles of one run; `async with` ends every process, socket and temporary file it started.

    `roles` are those the run will need: room for all their actors is set aside at once, or the run does not start. Roles take
    turns at staleness 0, so each may use all cores, but none may spin while it waits: a spinning OpenMP pool takes the cores
    from the role that works.
    """

    def __init__(self, config: ClusterConfig, logs: Path, roles: Sequence[Role] = ("rollout", "teacher", "learner")) -> None:
        self._config, self._logs = config, logs
        self._actors: list[tuple[Any, Any, int]] = []  # the role, its actor, the bundle it sits in
        self._local: list[Any] = []
        self._bundles: list[Role] = [role for role in roles for _ in range(self._settings(role).processes)]
        self._placed: Any = None

    async def __aenter__(self) -> "Cluster":
        self._scratch = Scratch()
        if self._config.roles == "ray":
            starting = asyncio.ensure_future(asyncio.to_thread(self._start_ray))
            try:
                await asyncio.shield(starting)
                # Ray's native code puts its own SIGTERM handler over ours, which prints a trace and may abort.
                signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            except BaseException:
                await asyncio.wait([starting])  # a thread cannot be cancelled: what it starts must be there to be ended
                self._end_ray(failed=True)
                self._scratch.remove()
                raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for role in self._local:
            await role.close()
        if self._config.roles == "ray":
            failed = kind is not None and kind is not asyncio.CancelledError
            self._end_ray(failed=failed)
        self._scratch.remove()

    async def host(self, role: Role, make: Callable[..., T], **arguments: Any) -> T:
        """The object that `make(**arguments)` builds, in an actor of its own or here. Its verbs are awaited either way."""
        if self._config.roles == "local":
            made = make(**arguments)  # one after another: loading a model changes torch for every thread
            self._local.append(made)
            return made
        remote = self._seat(role)
        self._scratch.guard()
        await remote.start(make, **arguments)
        return cast(T, remote)

    async def host_group(self, role: Role, make: Callable[..., T], count: int, **arguments: Any) -> list[T]:
        """`count` ranks that work on one thing together: `make` is also given the `group` each of them joins."""
        if count == 1:
            return [await self.host(role, make, **arguments)]
        seated = [self._seat(role) for _ in range(count)]
        self._scratch.guard()
        meeting = f"file://{self._scratch.path}/ranks-{id(seated):x}"
        if self._config.address is not None:  # the ranks may be on other machines, which do not share a directory
            meeting = await seated[0].ask(_free_address)
        groups = [RankGroup(rank, count, meeting) for rank in range(count)]
        await together(remote.start(make, group=group, **arguments) for remote, group in zip(seated, groups, strict=True))
        return seated

    async def restart(self, members: Sequence[T], make: Callable[..., T], **arguments: Any) -> list[T]:
        """What `make` builds in place of a role, or of the ranks of one: in the same processes, which stay warm."""
        if self._config.roles == "local":
            await together(self.dismiss(member) for member in members)
            return [await self.host("learner", make, **arguments)]
        remotes: list[Any] = list(members)
        # The ranks have met: their process group lives as long as they do.
        groups = [{"group": RankGroup(rank, len(members))} if len(members) > 1 else {} for rank in range(len(members))]
        await together(remote.start(make, **group, **arguments) for remote, group in zip(remotes, groups, strict=True))
        return remotes

    async def dismiss(self, role: Any) -> None:
        """End one role before the others; its place is free again."""
        for entry in [entry for entry in self._actors if entry[0] is role]:
            import ray

            self._actors.remove(entry)
            ray.kill(entry[1])
        if any(role is each for each in self._local):
            self._local.remove(role)
            await role.close()

    def _seat(self, role: Role) -> Any:
        """An empty actor in the next free bundle of its role."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from minidist.cluster.remote import Host, Remote

        taken = {bundle for _, _, bundle in self._actors}
        bundle = next(i for i, name in enumerate(self._bundles) if name == role and i not in taken)
        config = self._settings(role)
        strategy = PlacementGroupSchedulingStrategy(self._placed, placement_group_bundle_index=bundle)
        actor = (
            ray.remote(Host)
            .options(
                num_cpus=self._cpus(config),
                num_gpus=self._config.gpus_of(config),
                scheduling_strategy=strategy,
                runtime_env={"env_vars": self._environment(config)},
            )
            .remote()
        )
        number = sum(name == role for name in self._bundles[:bundle])
        remote = Remote(f"{role} {number}" if self._bundles.count(role) > 1 else role, actor)
        self._actors.append((remote, actor, bundle))
        return remote

    def _settings(self, role: Role) -> RoleConfig:
        return getattr(self._config, role)

    def _cpus(self, config: RoleConfig) -> float:
        """CPUs set aside for an actor; on a machine of the run's own the shares add up to its cores."""
        if config.cpus is not None:
            return config.cpus
        return 1.0 if self._config.address is not None else _share(self._config)

    def _start_ray(self) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if self._config.address is not None:
            ray.init(address=self._config.address, **quiet)
        else:
            os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
            with _own_group():
                ray.init(
                    address="local",  # a cluster of this run's own, whatever RAY_ADDRESS says
                    num_cpus=cores(),
                    num_gpus=self._config.gpus,
                    include_dashboard=False,
                    object_store_memory=int(self._config.object_store_gib * 2**30),
                    _temp_dir=str(self._scratch.path),
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
        self._reserve()

    def _reserve(self) -> None:
        """Room for every actor of the run at once, or a sentence that says what is lacking."""
        import ray
        from ray.util import placement_group

        settings = [self._settings(role) for role in self._bundles]
        bundles = [{"CPU": self._cpus(each), "GPU": self._config.gpus_of(each)} for each in settings]
        bundles = [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]
        self._placed = placement_group(bundles, strategy=self._config.placement.upper())
        if not self._placed.wait(self._config.start_timeout_s):
            wanted = ", ".join(f"{sum(bundle.get(name, 0) for bundle in bundles):g} {name}" for name in ("CPU", "GPU"))
            there = ", ".join(f"{ray.cluster_resources().get(name, 0):g} {name}" for name in ("CPU", "GPU"))
            raise ConfigError(
                f"no room for the run's {len(bundles)} actors ({wanted}) in {self._config.start_timeout_s:g} s: the cluster "
                f"has {there} in all; lower the counts or shares under cluster, or set cluster.placement=pack"
            )

    def _end_ray(self, *, failed: bool) -> None:
        import ray

        if not ray.is_initialized():
            return
        for _, actor, _ in self._actors:
            ray.kill(actor)
        if self._placed is not None:
            from ray.util import remove_placement_group

            remove_placement_group(self._placed)
        ray.shutdown()
        if failed:
            self._keep_logs()

    def _keep_logs(self) -> None:
        """The actors' output, out of Ray's session and into the run's directory."""
        found = [file for file in self._scratch.path.glob("session_2*/logs/worker-*") if file.stat().st_size]
        if found:
            self._logs.mkdir(parents=True, exist_ok=True)
            for file in found:
                shutil.copy(file, self._logs / file.name)
            log.info("the actors' output is in %s", self._logs)

    def _environment(self, config: RoleConfig) -> dict[str, str]:
        # The actors of one role work at the same time, those of different roles take turns.
        threads = self._config.threads or max(1, cores() // (config.processes * config.devices))
        variables = thread_environment(threads) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if self._config.address is None:
            variables |= {"TMPDIR": str(self._scratch.path), "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        return variables


@contextmanager
def _own_group() -> Iterator[None]:
    """What is started inside gets a process group of its own.

    A signal to a job's whole group (a scheduler's, or that of `timeout`) would else end Ray before the last checkpoint is
    written.
    """
    ours = os.getpgrp()
    if os.getpid() == os.getsid(0):  # the leader of a session cannot leave its group, and need not: it has no terminal
        yield
        return
    os.setpgid(0, 0)
    try:
        yield
    finally:
        os.setpgid(0, ours)


def _free_address() -> str:
    """Where the ranks of a group meet: a port of this node that was free a moment ago."""
    import socket

    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def thread_environment(threads: int | None) -> dict[str, str]:
    """How many threads a role takes while it works, and that it sleeps while it does not. Read when torch is imported."""
    count = str(threads or cores())
    return {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def _share(config: ClusterConfig) -> float:
    """CPUs of an actor without `cpus` on a machine of the run's own: what the others leave, in equal parts, rounded down."""
    roles: list[RoleConfig] = [config.rollout, config.teacher, config.learner]
    left = cores() - sum((role.cpus or 0) * role.processes for role in roles)
    waiting = sum(role.processes for role in roles if role.cpus is None)
    return int(100 * left / waiting) / 100 if waiting else 1.0


def check_machine(config: ClusterConfig) -> None:
    """Raise ConfigError when the configuration asks for more CPUs or GPUs than this machine has."""
    if config.address is not None:
        return
    roles: list[RoleConfig] = [config.rollout, config.teacher, config.learner]
    if (asked := sum((role.cpus or 0) * role.processes for role in roles)) > cores():
        raise ConfigError(f"the cpus under cluster add up to {asked:g}, and this machine has {cores()}; lower them")
    if _share(config) < 0.01:
        raise ConfigError(
            f"this machine has {cores()} CPUs, and {cores() - asked:g} of them are left for the actors without cpus of their "
            "own under cluster; lower the cpus, or the number of actors"
        )
    if config.gpus:
        import torch

        if (there := torch.cuda.device_count()) < config.gpus:
            raise ConfigError(
                f"cluster.gpus is {config.gpus}, and this machine has {there}; set cluster.gpus={there}, or cluster.address "
                "to a cluster that has them"
            )
