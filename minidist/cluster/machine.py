"""Cores, memory, shared memory and GPUs of this machine, within the limits of a container, and the CPU share of an actor. Read
without torch."""

import math
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from minidist.config.cluster import ClusterConfig, Role, RoleConfig

GIB = 2**30
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in GiB."""

    name: str
    gib: float
    free_gib: float


@dataclass(frozen=True)
class Space:
    """Memory or disk: how much in all, and how much is free, GiB."""

    gib: float
    free_gib: float


def usable_cores() -> float:
    """Cores this process may use: its affinity, or less where its cgroup has a quota."""
    cores = float(len(os.sched_getaffinity(0)))
    for group in _groups("cpu"):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            cores = min(cores, int(quota) / int(period))
    return cores


def cores() -> int:
    """Whole cores this process may use, at least one."""
    return max(1, int(usable_cores()))


def thread_environment(threads: int | None) -> dict[str, str]:
    """The number of threads of a role while it works, and how long its helpers wait awake. Read when torch is imported.

    A step of a small model is some sixty parallel regions of tens of microseconds each. Helpers that sleep at once
    (OMP_WAIT_POLICY=PASSIVE) made vLLM's step 1.7 times as long on two cores; those that never sleep take the cores of the next
    role. 20,000 turns are a fifth of a millisecond.
    """
    count = str(threads or cores())
    return {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "GOMP_SPINCOUNT": "20000", "TOKENIZERS_PARALLELISM": "false"}


def actor_cpus(config: ClusterConfig, role: RoleConfig) -> float:
    """CPUs set aside for an actor; on a machine that the run has to itself the shares add up to its cores."""
    if role.cpus is not None:
        return role.cpus
    return 1.0 if config.address is not None else cpu_share(config)


def cpu_share(config: ClusterConfig) -> float:
    """CPUs of an actor without `cpus` on one machine: the cores that the others leave, in equal parts, rounded down."""
    roles: dict[Role, RoleConfig] = {"rollout": config.rollout, "teacher": config.teacher, "learner": config.learner}
    left = cores() - sum((role.cpus or 0) * config.processes_of(name) for name, role in roles.items())
    waiting = sum(config.processes_of(name) for name, role in roles.items() if role.cpus is None)
    return int(100 * left / waiting) / 100 if waiting else 1.0


def host_memory() -> Space:
    """Memory of the host, or of the cgroup this process is in where that allows less."""
    memory = psutil.virtual_memory()
    total, free = float(memory.total), float(memory.available)
    for group in _groups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if (most := _read(group / limit)).isdigit() and int(most) < memory.total:
                total = min(total, int(most))
                free = min(free, int(most) - int(_read(group / used) or 0) + _reclaimable(group))
    return Space(total / GIB, max(0.0, free) / GIB)


def disk(path: Path) -> Space:
    """The disk of a path, also of a path that does not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    usage = shutil.disk_usage(path)
    return Space(usage.total / GIB, usage.free / GIB)


def gpus() -> list[Gpu]:
    """GPUs by nvidia-smi, without those that CUDA_VISIBLE_DEVICES hides. Initialises no device."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    rows = (map(str.strip, line.rsplit(",", 2)) for line in done.stdout.splitlines())
    found = [Gpu(name, _mib(total), _mib(free)) for name, total, free in rows]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    listed = [part.strip() for part in visible.split(",") if part.strip()]
    if all(part.isdigit() for part in listed):
        return [found[int(part)] for part in listed if int(part) < len(found)]
    return found[: len(listed)]  # by UUID; the devices of one machine are alike


def cpu_flags() -> set[str]:
    """Instruction sets of the CPU by their Linux names; empty where Linux does not list them."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return set(match[1].split()) if match else set()


def _mib(text: str) -> float:
    """A figure of nvidia-smi in GiB; NaN for devices that share the host's memory."""
    return float(text) / 1024 if text.replace(".", "").isdigit() else math.nan


def _groups(controller: str) -> list[Path]:
    """The cgroup of this process and its parents, of version 2 and of `controller` in version 1."""
    found = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            root = _CGROUPS if number == "0" else _CGROUPS / controller
            path = root / group.strip("/")
            # A container sees its group as the root, under whatever name the host has for it.
            found += [each for each in (path, *path.parents) if each == root or root in each.parents]
    return found


def _reclaimable(group: Path) -> int:
    """Bytes of file cache, which count as used and are freed on demand."""
    match = re.search(r"^inactive_file (\d+)$", _read(group / "memory.stat"), re.MULTILINE)
    return int(match[1]) if match else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
