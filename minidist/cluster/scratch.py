"""A temporary directory for one run, and a process that removes it however the run ends."""

import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil


class Scratch:
    """A temporary directory that is removed when this process ends, however it ends.

    A small shell waits on a pipe that only this process holds open. When the pipe closes, it removes the directory; if this
    process was killed, it first ends the processes that had been started by then.
    """

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        # The directory holds sockets, whose paths are limited to 107 characters.
        self.path = Path(tempfile.mkdtemp(prefix="minidist-", dir=parent if len(parent) <= 19 else "/tmp"))
        self._guarded: dict[int, str] = {}
        """Start time of each process that the keeper knows of, by its id."""
        self._before = tempfile.tempdir, os.environ.get("TMPDIR")
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.path)
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, str(self.path), _ENDED], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def guard(self) -> None:
        """Tell the keeper of every process that descends from this one."""
        children = [child.pid for child in psutil.Process().children(recursive=True) if child.pid != self._keeper.pid]
        self._guarded = {pid: start for pid in children if (start := start_time(pid)) is not None}
        self._tell(" ".join(f"{pid}:{start}" for pid, start in self._guarded.items()))

    def kill(self) -> None:
        """End the processes that the keeper knows of, where Ray cannot end them."""
        for pid, start in self._guarded.items():
            if start_time(pid) == start:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """Remove the directory, after the processes have ended."""
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


_ENDED = (
    "minidist: the process that ran the command has ended without a word: it was killed, or Ray ended it, which it does where "
    "it finds its own node (raylet) dead; the same command resumes it"
)
"""What the keeper says of a process that has not ended its run."""

# Each line replaces the list of processes (id:start time); an empty line means that all processes have ended. The start time
# distinguishes a process from a later one with the same id. A job that is stopped has a signal sent to each of its processes:
# the keeper ends after the run.
_KEEPER = """
trap '' TERM INT
while read -r line; do processes=$line; done
[ -z "$processes" ] || echo "$1" >&2
for process in $processes; do
    stat=$(cat /proc/${process%:*}/stat 2>/dev/null) || continue
    set -- ${stat##*) }
    [ "${20}" = "${process#*:}" ] && kill -9 ${process%:*}
done
for again in 1 2 3 4 5; do rm -rf "$0" && exit; sleep 1; done
"""


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, or None if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    except FileNotFoundError:
        return None
