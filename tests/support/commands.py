"""`minidist …` as a process of its own, forked from one that has imported everything or, with `fresh`, started by Python.

Forked, a command does what it does from a shell, without the seconds that its imports take. Ray does not start in a forked
process, so commands that start it are `fresh`.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerProcess
from pathlib import Path

LIMIT = 240
"""Seconds for one command on a busy machine."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preloaded"])


class Forked:
    """A forked process with the methods of `subprocess.Popen`."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()


class Command:
    """A command and what it prints."""

    def __init__(self, process: "Forked | subprocess.Popen[bytes]", files: Path) -> None:
        self.process = process
        self._files = files

    @property
    def returncode(self) -> int | None:
        """None while it runs; the negative number of the signal that ended it."""
        return self.process.poll()

    @property
    def stdout(self) -> str:
        return (self._files / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self._files / "stderr").read_text()

    def wait(self, seconds: float = LIMIT) -> "Command":
        """The command once it has ended. Kills it and raises TimeoutExpired where that takes longer."""
        try:
            self.process.wait(seconds)
        finally:
            self.process.kill()
        return self


def start(*arguments: object, fresh: bool = False, events: Path | None = None) -> Command:
    """`minidist ARGUMENTS`, running, with the environment that this process has now. `events`: the file for the events of a
    fresh one (`tests.support.observed`)."""
    files, words = Path(tempfile.mkdtemp(prefix="command-", dir="/tmp")), [str(argument) for argument in arguments]
    for name in ("stdout", "stderr"):
        (files / name).touch()
    if fresh:
        with (files / "stdout").open("wb") as out, (files / "stderr").open("wb") as errors:
            module = ["minidist.cli"] if events is None else ["tests.support.observed", str(events)]
            command = [sys.executable, "-m", *module, *words]
            return Command(subprocess.Popen(command, stdout=out, stderr=errors), files)
    process = _CONTEXT.Process(target=_main, args=(words, files, dict(os.environ), Path.cwd()), name=f"minidist {words[0]}")
    process.start()
    return Command(Forked(process), files)


def run(*arguments: object, fresh: bool = False) -> Command:
    """`minidist ARGUMENTS`, ended."""
    return start(*arguments, fresh=fresh).wait()


def _main(words: list[str], files: Path, environment: dict[str, str], directory: Path) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(files / name, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    tempfile.tempdir = None  # it is read from the environment again
    sys.argv = ["minidist", *words]
    from minidist.cli import main

    main()
