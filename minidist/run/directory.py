"""A run's directory: new, finished, to be gone on with, or refused because it holds another run."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from minidist.config import Command, difference, dump
from minidist.config.run import RunConfig
from minidist.errors import RunDirectoryError
from minidist.run.checkpoint import Checkpoint, Checkpoints

_LOCK = ".lock"


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
        if all(entry.name == _LOCK for entry in self.path.iterdir()):
            return
        resolved = self._there()
        if resolved is None:
            raise RunDirectoryError(f"{self.path} holds files but no run; set run.directory to another place")
        if self._overwrite:
            return
        if found := difference(resolved, self._config):
            key, there, here = found
            raise RunDirectoryError(
                f"{self.path} holds another configuration: {key} is {there!r} there and {here!r} here; set another "
                "run.directory, or run.overwrite=true to delete that run"
            )

    def _there(self) -> dict[str, Any] | None:
        """The configuration of the run that is there, or None when no run wrote these files."""
        try:
            resolved = json.loads((self.path / "config.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        # A model's directory has a config.json too.
        return resolved if isinstance(resolved, dict) and "stage" in resolved and "run" in resolved else None

    def finished(self) -> bool:
        """Whether this very run is done already. Raises as `check` does when another run is there."""
        self.check()
        return not self._overwrite and self.summary is not None

    def start(self) -> Checkpoint | None:
        """Take the directory: the checkpoint to go on from, or None in a directory that is empty now.

        What an unfinished run left without a checkpoint is deleted. Raises RunDirectoryError when another process runs here.
        """
        self.check()
        self._lock()
        checkpoint = None if self._overwrite else self.checkpoints.newest()
        if checkpoint is None:
            self._clear()
        else:
            _cut(self.path / "metrics.jsonl", checkpoint)
        write_whole(self.path / "config.json", self._resolved)
        return checkpoint

    def share(self) -> None:
        """Take a directory that holds runs of its own: what is there stays, unless run.overwrite is set."""
        self.check()
        self._lock()
        if self._overwrite:
            self._clear()
        write_whole(self.path / "config.json", self._resolved)

    def _clear(self) -> None:
        # config.json last: when this is interrupted, what is left is still known for a run.
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == "config.json"):
            if entry.name != _LOCK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", self._kept)

    def _lock(self) -> None:
        """Held until this process ends, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._held = (self.path / _LOCK).open("w")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._held.close()
            raise RunDirectoryError(
                f"another process is running in {self.path}; wait for it to end, or set another run.directory"
            ) from None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json: the run is done, and the directory free."""
        write_whole(self.path / "summary.json", summary)
        self._held.close()


def write_whole(file: Path, values: Any, *, indent: int | None = 2) -> None:
    """Values as JSON, whole or not at all, whenever the process ends."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=indent) + "\n")
    partial.replace(file)


def _cut(metrics: Path, checkpoint: Checkpoint) -> None:
    """Take back what was measured after the checkpoint: it will be measured again."""
    length = checkpoint.state["metrics_bytes"]
    if not metrics.is_file() or metrics.stat().st_size < length:
        raise RunDirectoryError(
            f"{metrics} is shorter than when {checkpoint.path.name} was written; set run.overwrite=true to start the run again"
        )
    os.truncate(metrics, length)
