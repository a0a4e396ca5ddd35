"""vLLM's own processes, over which tensor parallelism splits a model: their environment, and that nothing of them stays."""

import os
from pathlib import Path

import psutil

_SHARED = Path("/dev/shm")
_OURS = ("psm_", "sem.mp-", "vllm_dist_")


def prepare(count: int) -> None:
    """Set the environment that `count` processes will inherit: the loopback to talk over, and their part of the threads."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    os.environ |= {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # forking after torch has made its threads would hang
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        # More threads than cores are not a little slower but slower by a factor: each region waits for all of them.
        "OMP_NUM_THREADS": str(max(1, threads // count)),
    }


def hide_shared_memory() -> list[Path]:
    """Take away the names of the shared memory through which this process and its children talk, and return them.

    All have opened it by now. Without a name it goes with the last of them, also when they are killed; with one, a killed
    actor would leave hundreds of megabytes in /dev/shm.
    """
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    # By inode: what made a semaphore has mapped it under a name that it no longer has.
    mapped = set[int]().union(*(_mapped(process.pid) for process in processes))
    names = [path for path in _SHARED.iterdir() if path.name.startswith(_OURS) and _inode(path) in mapped]
    for name in names:
        name.unlink(missing_ok=True)
    return names


def show_shared_memory(names: list[Path]) -> None:
    """Put the names back (on nothing), so that what vLLM removes when it shuts down in peace is there."""
    for name in names:
        name.touch()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:  # another process's, gone in the meantime
        return None


def _mapped(pid: int) -> set[int]:
    """Inodes of the shared memory that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in lines if f"{_SHARED}/" in line}
