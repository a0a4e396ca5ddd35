"""A run whose processes are known by their roles, so that one of them can be killed at a given moment."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.support.commands import LIMIT, Command, start


class Observed:
    """A command in Ray actors, and the events of its run so far."""

    def __init__(self, file: Path, *arguments: object) -> None:
        self._file = file
        file.unlink(missing_ok=True)
        self.command: Command = start(*arguments, fresh=True, events=file)

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self._file.read_text().splitlines(keepends=True) if self._file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def steps(self) -> int:
        """Steps taken, those that were taken again included."""
        return sum(event["event"] == "step" for event in self.events)

    def wait(self, holds: Callable[[], bool], seconds: float = LIMIT) -> None:
        """Wait until something holds."""
        until = time.monotonic() + seconds
        while not holds():
            assert self.command.returncode is None, f"ended too early: {self.command.stderr}"
            assert time.monotonic() < until, f"too late: {self.command.stderr}"
            time.sleep(0.05)

    def processes(self, kind: str) -> list[psutil.Process]:
        """The living processes of a kind: driver, raylet, gcs_server, a role, or `engine`, those of the rollout actors'."""
        driver = psutil.Process(self.command.process.pid)
        if kind == "driver":
            return [driver]
        if kind in ("raylet", "gcs_server"):
            return [each for each in driver.children(recursive=True) if each.name() == kind]
        role = "rollout" if kind == "engine" else kind
        last = {event["name"]: event["pid"] for event in self.events if event["event"] == "role"}
        found = [pid for name, pid in last.items() if name.split(" ")[0] == role and psutil.pid_exists(pid)]
        actors = [psutil.Process(pid) for pid in found]
        if kind != "engine":
            return actors
        children = [child for actor in actors for child in actor.children(recursive=True)]
        return [child for child in children if "VLLM::Worker" in " ".join(child.cmdline())]

    def kill(self, kind: str, number: int = signal.SIGKILL, which: int = -1) -> float:
        """Send a signal to a process of a kind, once there is one; returns when that was."""
        self.wait(lambda: bool(self.processes(kind)))
        found = self.processes(kind)
        os.kill(found[which % len(found)].pid, number)
        return time.time()

    def phase(self, at: float) -> str:
        """The phase of the loop, innermost, in which a time was; `start` before the first one."""
        open_phases: list[str] = []
        begun = False
        for event in self.events:
            if event["at"] > at:
                break
            if event["event"] == "begin":
                begun = True
                open_phases.append(event["name"])
            elif event["event"] == "end" and event["name"] in open_phases:
                open_phases.remove(event["name"])
        return open_phases[-1] if open_phases else "between" if begun else "start"

    def next_step(self, after: float) -> float | None:
        """When the first step after a time was recorded."""
        return next((event["at"] for event in self.events if event["event"] == "step" and event["at"] > after), None)

    def recovered(self, at: float) -> float:
        """Seconds from a time to the first step that was recorded once all processes that started later stood."""
        started = [event["at"] for event in self.events if event["event"] == "role" and event["at"] > at]
        return (self.next_step(max(started, default=at)) or at) - at
