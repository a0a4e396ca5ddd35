"""Where the roles live: in Ray actors, or in this process. What a run starts here ends with it."""

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil

from minidist.config.runtime import ClusterConfig
from minidist.errors import ConfigError
from minidist.tracking import log

T = TypeVar("T")

_ROLES = 3  # rollout, teacher, learner share the machine


class Cluster:
    """Hosts the roles of one run; `async with` ends every process, socket and temporary file it started.

    Roles take turns at staleness 0, so each may use all cores, but none may spin while it waits: a spinning OpenMP pool
    takes the cores from the role that works.
    """

    def __init__(self, config: ClusterConfig, logs: Path) -> None:
        self._config, self._logs = config, logs
        self._actors: list[tuple[Any, Any]] = []
        self._local: list[Any] = []

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
            self._end_ray(failed=kind is not None)
        self._scratch.remove()

    async def host(self, name: str, make: Callable[..., T], **arguments: Any) -> T:
        """The role that `make(**arguments)` builds, in an actor of its own or here. Its verbs are awaited either way."""
        if self._config.roles == "local":
            role = make(**arguments)  # one after another: loading a model changes torch for every thread
            self._local.append(role)
            return role
        import ray

        from minidist.remote import Remote

        actor = (
            ray.remote(_Host)
            .options(num_cpus=0, num_gpus=self._gpu_share(), runtime_env={"env_vars": self._environment()})
            .remote()
        )
        remote = Remote(name, actor)
        self._actors.append((remote, actor))
        self._scratch.guard()
        await remote.start(make, **arguments)
        return cast(T, remote)

    async def dismiss(self, role: Any) -> None:
        """End one role before the others."""
        import ray

        for entry in [entry for entry in self._actors if entry[0] is role]:
            self._actors.remove(entry)
            ray.kill(entry[1])
        if role in self._local:
            self._local.remove(role)
            await role.close()

    def _start_ray(self) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if self._config.address is not None:
            ray.init(address=self._config.address, **quiet)
            return
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
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

    def _end_ray(self, *, failed: bool) -> None:
        import ray

        for _, actor in self._actors:
            ray.kill(actor)
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

    def _environment(self) -> dict[str, str]:
        return thread_environment(self._config.threads) | {
            "TMPDIR": str(self._scratch.path),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def _gpu_share(self) -> float:
        """A device of its own where there are enough, else a share of one: Ray never splits a role over two."""
        return 1.0 if self._config.gpus >= _ROLES else {0: 0.0, 1: 0.33, 2: 0.5}[self._config.gpus]


class _Host:
    """The actor: holds one role and passes its verbs on."""

    _role: Any

    async def call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        if verb == "start":
            self._role = arguments[0](**options)
            return None
        return await getattr(self._role, verb)(*arguments, **options)


class Scratch:
    """A temporary directory that goes when this process does, however it ends.

    A small shell waits on a pipe that only this process holds open. When the pipe closes, it removes the directory; if this
    process was killed, it first ends the processes that had been started by then.
    """

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        # Sockets lie in here, and the path of a socket may have 107 characters.
        self.path = Path(tempfile.mkdtemp(prefix="minidist-", dir=parent if len(parent) <= 25 else "/tmp"))
        self._before = tempfile.tempdir, os.environ.get("TMPDIR")
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.path)
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, str(self.path)], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def guard(self) -> None:
        """Tell the keeper of every process that descends from this one."""
        children = [child.pid for child in psutil.Process().children(recursive=True) if child.pid != self._keeper.pid]
        self._tell(" ".join(f"{pid}:{start}" for pid in children if (start := _start_time(pid)) is not None))

    def remove(self) -> None:
        """Remove the directory; the processes have been ended already."""
        self._tell("")
        tempfile.tempdir, before = self._before
        if before is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = before
        self._keeper.communicate()

    def _tell(self, processes: str) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(f"{processes}\n")
        self._keeper.stdin.flush()


# Each line replaces the list of processes, given as id:start time; an empty one means that all has ended well. The start time
# tells a process from a later one that was given the same id.
_KEEPER = """
while read -r line; do processes=$line; done
for process in $processes; do
    stat=$(cat /proc/${process%:*}/stat 2>/dev/null) || continue
    set -- ${stat##*) }
    [ "${20}" = "${process#*:}" ] && kill -9 ${process%:*}
done
for again in 1 2 3 4 5; do rm -rf "$0" && exit; sleep 1; done
"""


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, or None if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    except FileNotFoundError:
        return None


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def thread_environment(threads: int | None) -> dict[str, str]:
    """How many threads a role takes while it works, and that it sleeps while it does not. Read when torch is imported."""
    count = str(threads or cores())
    return {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def check_gpus(config: ClusterConfig) -> None:
    """Raise ConfigError when the configuration asks for GPUs that are not there."""
    if config.gpus and config.address is None:
        import torch

        if (there := torch.cuda.device_count()) < config.gpus:
            raise ConfigError(
                f"cluster.gpus is {config.gpus}, and this machine has {there}; set cluster.gpus={there}, or cluster.address "
                "to a cluster that has them"
            )
