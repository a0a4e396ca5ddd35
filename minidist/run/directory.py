"""A run's directory: new, finished, unfinished and resumed, or refused because it holds another run."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from minidist.config import Command, difference, dump
from minidist.config.run import RunConfig
from minidist.errors import RunDirectoryError
from minidist.run.checkpoint import Checkpoint, Checkpoints
from minidist.run.files import LOCK, lock, write_json


class RunDirectory:
    """`run.directory` on disk. Its `config.json` says which configuration it belongs to."""

    def __init__(self, config: Command) -> None:
        self.path = config.run.directory
        self._config = config
        self._resolved = dump(config)
        self._overwrite = config.run.overwrite
        self._kept = config.run.checkpoints_kept if isinstance(config.run, RunConfig) else 0

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def summary(self) -> dict[str, Any] | None:
        """summary.json of a finished run, or None."""
        file = self.path / "summary.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def check(self) -> None:
        """Raise RunDirectoryError if the directory holds another configuration, or files that no run wrote."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunDirectoryError(f"run.directory {self.path} is a file; set it to a directory")
        if all(entry.name == LOCK for entry in self.path.iterdir()):
            return
        if (recorded := self._recorded()) is None:
            raise RunDirectoryError(f"{self.path} holds files but no run; set run.directory to another directory")
        if not self._overwrite and (found := difference(recorded, self._config)):
            key, before, now = found
            changed = f"{key} was {before!r} and is now {now!r}"
            remedy = "set another run.directory, or run.overwrite=true to delete that run"
            raise RunDirectoryError(f"{self.path} holds a run of another configuration: {changed}; {remedy}")

    def _recorded(self) -> dict[str, Any] | None:
        """The configuration of the run in this directory, or None when no run wrote its files."""
        try:
            recorded = json.loads((self.path / "config.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        # A model's directory has a config.json too.
        return recorded if isinstance(recorded, dict) and "stage" in recorded and "run" in recorded else None

    def finished(self) -> bool:
        """Whether this run has finished. Raises as `check` does when the directory holds another run."""
        self.check()
        return not self._overwrite and self.summary is not None

    def start(self) -> Checkpoint | None:
        """Lock the directory and return the checkpoint to resume from, or None for a run that starts at its first step.

        Files of an unfinished run without a checkpoint are deleted. Raises RunDirectoryError when another process is running in
        the directory.
        """
        self._take()
        checkpoint = None if self._overwrite else self.checkpoints.newest()
        if checkpoint is None:
            self._clear()
        else:
            _truncate(self.path / "metrics.jsonl", checkpoint)
        write_json(self.path / "config.json", self._resolved)
        return checkpoint

    def share(self) -> None:
        """Lock a directory whose cells are runs in subdirectories: all of them stay, unless run.overwrite is set."""
        self._take()
        if self._overwrite:
            self._clear()
        write_json(self.path / "config.json", self._resolved)

    def _clear(self) -> None:
        # config.json last: an interrupted deletion leaves files that are still known to be a run's.
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == "config.json"):
            if entry.name != LOCK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", self._kept)

    def _take(self) -> None:
        self.check()
        self._lock = lock(self.path, use="running in", setting="run.directory")
        self._started = time.time()

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write summary.json, which marks a finished run, unlock the directory, and return the summary.

        The summary is `result` with the stage, and the seconds since the directory was locked.
        """
        summary = {"stage": self._config.stage, "seconds": round(time.time() - self._started, 1), **result}
        write_json(self.path / "summary.json", summary)
        self._lock.close()
        return summary


def _truncate(metrics: Path, checkpoint: Checkpoint) -> None:
    """Delete the metrics of the steps after the checkpoint, which the resumed run takes again."""
    length = checkpoint.state["metrics_bytes"]
    if not metrics.is_file() or metrics.stat().st_size < length:
        remedy = "set run.overwrite=true to start the run again"
        raise RunDirectoryError(f"{metrics} is shorter than when {checkpoint.path.name} was written; {remedy}")
    os.truncate(metrics, length)
