"""The processes over which vLLM splits a model: their environment, and the removal of shared memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from minidist.errors import ActorLostError

_SHARED = Path("/dev/shm")
# Semaphores are those of multiprocessing, sem.mp-, or of joblib once it is loaded, sem.loky-.
_OURS = ("psm_", "sem.", "vllm_dist_")


def prepare(count: int) -> None:
    """Set the environment that `count` processes inherit: the loopback interface, and an equal part of the threads."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    os.environ |= {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would hang, since torch has started threads
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        # More threads than cores are slower by a factor: each parallel region waits for all threads.
        "OMP_NUM_THREADS": str(max(1, threads // count)),
    }


@contextmanager
def of_living(engine: Any) -> Iterator[None]:
    """A call of vLLM that needs the processes of a split model. Raises ActorLostError where one of them has died: vLLM ends the
    others, and raises errors of several kinds."""
    try:
        yield
    except (RuntimeError, AssertionError, AttributeError, OSError) as error:
        if getattr(engine.engine_core.engine_core.model_executor, "is_failed", False):
            raise ActorLostError(f"a process of its vLLM engine has died ({type(error).__name__}: {error})") from error
        raise


def hide_shared_memory() -> list[Path]:
    """Unlink the shared memory through which this process and its children communicate, and return its names.

    All processes have opened the memory by now. Unlinked memory is freed when the last process ends, even if it is killed;
    otherwise a killed actor would leave hundreds of megabytes in /dev/shm.
    """
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    # Compared by inode: the process that created a semaphore has mapped it under a name that no longer exists.
    mapped = set[int]().union(*(_mapped(process.pid) for process in processes))
    with os.scandir(_SHARED) as entries:
        names = [Path(entry.path) for entry in entries if entry.name.startswith(_OURS) and entry.inode() in mapped]
    for name in names:
        name.unlink(missing_ok=True)
    return names


def show_shared_memory(names: list[Path]) -> None:
    """Restore the names as empty files, so that vLLM finds the names it removes in an orderly shutdown."""
    for name in names:
        name.touch()


def _mapped(pid: int) -> set[int]:
    """Inodes of the shared memory that a process maps."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in lines if f"{_SHARED}/" in line}
