"""Memory of a process and all its descendants, while it runs."""

import threading
from pathlib import Path

import psutil

INTERVAL_S = 0.1


def proportional_bytes(root: int) -> int:
    """Proportional set size of a process and its descendants, bytes: a page that several processes share counts once."""
    try:
        parent = psutil.Process(root)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_bytes_of(process.pid) for process in processes)


def _bytes_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # the process has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


class MemorySampler:
    """The peak of `proportional_bytes`, sampled every 0.1 s while it is not paused.

    Reading it takes processor time, so that timed steps are not sampled.
    """

    def __init__(self, root: int) -> None:
        self.peak_bytes = 0
        self._root = root
        self._sampling = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._sampling.set()
        self._thread.start()

    def pause(self) -> None:
        self._sampling.clear()

    def go_on(self) -> None:
        self._sampling.set()

    def end(self) -> int:
        """The peak, bytes."""
        self._ended.set()
        self._sampling.set()
        self._thread.join()
        return self.peak_bytes

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._sampling.wait()
            self.peak_bytes = max(self.peak_bytes, proportional_bytes(self._root))
