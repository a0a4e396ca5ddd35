"""A run's directory: new, finished, unfinished and resumed, or refused because it holds another run."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict

from minidist.config import Command, difference, dump
from minidist.config.run import RunConfig
from minidist.errors import RunDirectoryError
from minidist.run.checkpoint import Checkpoint, Checkpoints
from minidist.run.files import LOCK, lock, read_record, remove, write_json, writing


@with_config(extra="allow")
class Recorded(TypedDict):
    """The fields of a run's config.json that a model's lacks."""

    stage: str
    run: dict[str, Any]


@with_config(extra="allow")
class Summary(TypedDict, total=False):
    """The fields of summary.json that are read again."""

    steps: int
    result: dict[str, dict[str, Any]]


class RunDirectory:
    """`run.directory` on disk. Its `config.json` says which configuration it belongs to."""

    def __init__(self, config: Command) -> None:
        self.path = config.run.directory
        self._config = config
        self._resolved = dump(config)
        self._overwrite = config.run.overwrite
        self._kept = config.run.checkpoints_kept if isinstance(config.run, RunConfig) else 0
        self._steps = config.run.steps if isinstance(config.run, RunConfig) else None

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def summary(self) -> dict[str, Any] | None:
        """summary.json of a finished run, or None."""
        file, remedy = self.path / "summary.json", "remove it to go on with the run, or set run.overwrite=true"
        return dict(read_record(file, Summary, remedy)) if os.path.lexists(file) else None

    @property
    def earlier_steps(self) -> int | None:
        """run.steps with which the run in this directory was started, where they are others now; else None."""
        recorded = None if self._overwrite else self._recorded()
        steps = recorded["run"].get("steps") if recorded else None
        return steps if isinstance(steps, int) and steps != self._steps else None

    def check(self) -> None:
        """Raise RunDirectoryError if the directory holds another configuration, or files that no run wrote."""
        if not self._names() - {LOCK}:
            return
        if (recorded := self._recorded()) is None:
            raise RunDirectoryError(f"{self.path} holds files but no run; set run.directory to another directory")
        if not self._overwrite and (found := difference(dict(recorded), self._config)):
            key, before, now = found
            changed = f"{key} was {before!r} and is now {now!r}"
            remedy = "set another run.directory, or run.overwrite=true to delete that run"
            raise RunDirectoryError(f"{self.path} holds a run of another configuration: {changed}; {remedy}")
        if not self._overwrite and self._steps is not None:
            self._check_steps(self._steps)

    def _check_links(self) -> None:
        """A run writes its own files, and through no symbolic link, which would change others."""
        for folder, folders, files in os.walk(self.path):
            linked = next((path for name in (*folders, *files) if (path := Path(folder, name)).is_symlink()), None)
            if linked is not None:
                raise RunDirectoryError(
                    f"{linked} is a symbolic link, and a run writes through none; put the file or directory in its place, or "
                    "set another run.directory"
                )

    def _names(self) -> set[str]:
        """Names of all that the directory holds; none where it does not exist yet. Raises RunDirectoryError."""
        try:
            return {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            return set()
        except NotADirectoryError:
            raise RunDirectoryError(f"run.directory {self.path} is a file, or below one; set it to a directory") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise RunDirectoryError(f"run.directory {self.path} cannot be used: {reason}; set it to a directory") from None

    def _recorded(self) -> Recorded | None:
        """The configuration of the run in this directory, or None when no run wrote its files."""
        with suppress(RunDirectoryError):
            return read_record(self.path / "config.json", Recorded, "")
        return None

    def _check_steps(self, steps: int) -> None:
        """A run goes on with more steps, not with fewer than it has taken; and only from a checkpoint."""
        last = self.checkpoints.last
        taken = max(last or 0, (self.summary or {}).get("steps", 0))
        other = "another run.directory, or run.overwrite=true to start again"
        if taken > steps:
            found = f"run.steps is {steps}, and the run in {self.path} has taken {taken} already"
            raise RunDirectoryError(f"{found}; raise it, or set {other}")
        if self._grows() and last is None:
            found = f"run.steps is now {steps}, and the run in {self.path} has finished after {taken} without a checkpoint"
            raise RunDirectoryError(f"{found} to go on from; set student.model to {self.final} and {other}")

    def _grows(self) -> bool:
        """Whether a run that has taken all of its steps has more to take now. A run that stopped early has none."""
        before = self.earlier_steps
        return before is not None and self.summary is not None and self.summary.get("steps") == before

    def finished(self) -> bool:
        """Whether this run has finished. Raises as `check` does when the directory holds another run."""
        self.check()
        return not self._overwrite and self.summary is not None and not self._grows()

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
            self._check_links()
            _truncate(self.path / "metrics.jsonl", checkpoint)
        (self.path / "summary.json").unlink(missing_ok=True)  # of a finished run that goes on
        write_json(self.path / "config.json", self._resolved)
        return checkpoint

    def share(self) -> None:
        """Lock a directory whose cells are runs in subdirectories: all of them stay, unless run.overwrite is set."""
        self._take()
        if self._overwrite:
            self._clear()
        self._check_links()
        write_json(self.path / "config.json", self._resolved)

    def _clear(self) -> None:
        # config.json last: an interrupted deletion leaves files that are still known to be a run's.
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == "config.json"):
            if entry.name != LOCK:
                remove(entry)

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
    length = checkpoint.state.get("metrics_bytes")
    if length is None or not metrics.is_file() or metrics.stat().st_size < length:
        remedy = "set run.overwrite=true to start the run again"
        raise RunDirectoryError(f"{metrics} is shorter than when {checkpoint.path.name} was written; {remedy}")
    with writing(metrics):
        os.truncate(metrics, length)
