"""The memory of a run on this node: of the driver, of its children and theirs, Ray's processes and the actors among them."""

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

SHARE = 0.01
"""Largest part of the time that is spent on looking."""

_PROC, _PAGE = Path("/proc"), os.sysconf("SC_PAGE_SIZE")
_SHORTEST_S, _GROWTH, _LONGEST_S = 0.2, 1.01, 30.0


class MemoryWatch:
    """A thread that keeps the largest sum of the processes' proportional set sizes (PSS): pages that several processes share,
    such as those of libraries and of Ray's object store, count once in the sum.

    The kernel takes milliseconds for the PSS of one large process. So the thread often reads the sizes of private pages, which
    cost microseconds, and the PSS where those have grown by a hundredth, or after half a minute; and it looks the less often
    the longer a look takes.

    Args:
        others: processes of the run that are not below this one, such as actors of a Ray cluster that the run joined.
    """

    def __init__(self, others: Iterable[int] = ()) -> None:
        self.peak = 0
        """Bytes."""
        self.spent_s = 0.0
        self._others = set(others)
        self._private = 0
        self._looked = -float("inf")
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def add(self, pids: Iterable[int]) -> None:
        """Watch these processes, and their children, too."""
        self._others |= set(pids)

    def close(self) -> None:
        """Look a last time, and end the thread."""
        self._ended.set()
        self._thread.join()
        self._look(force=True)

    def _watch(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            self._look()
            # Time spent so far, over the time since the beginning and up to the next look, is at most the share.
            due = self._began + self.spent_s / SHARE - time.monotonic()
            pause = max(_SHORTEST_S, due)

    def _look(self, *, force: bool = False) -> None:
        with self._lock:
            start, clock = time.thread_time(), time.monotonic()
            pids = _with_children({psutil.Process().pid, *self._others})
            private = sum(map(_private, pids))
            if force or private > _GROWTH * self._private or clock > self._looked + _LONGEST_S:
                self._private, self._looked = max(private, self._private), clock
                self.peak = max(self.peak, sum(map(proportional, pids)))
            self.spent_s += time.thread_time() - start


def _with_children(roots: Iterable[int]) -> list[int]:
    """The processes and all below them."""
    found = set()
    for pid in roots:
        try:
            process = psutil.Process(pid)
            found |= {pid, *(child.pid for child in process.children(recursive=True))}
        except psutil.NoSuchProcess:
            continue
    return sorted(found)


def _private(pid: int) -> int:
    """Bytes of the process's resident pages that belong to no file and to no shared memory; 0 where it has ended."""
    try:
        resident, shared = (_PROC / str(pid) / "statm").read_text().split()[1:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * _PAGE


def proportional(pid: int) -> int:
    """PSS of a process, bytes; 0 where it has ended, or is another user's."""
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
