"""A run's directory: new, finished, or refused because it holds another run."""

import json
import shutil
from pathlib import Path
from typing import Any

from minidist.config import Config, dump
from minidist.errors import RunDirectoryError


class RunDirectory:
    """`run.directory` on disk. Its `config.json` says which configuration it belongs to."""

    def __init__(self, config: Config) -> None:
        self.path = config.run.directory
        self._resolved = dump(config)
        self._overwrite = config.run.overwrite

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
        if not any(self.path.iterdir()):
            return
        resolved = self._there()
        if resolved is None:
            raise RunDirectoryError(f"{self.path} holds files but no run; set run.directory to another place")
        if self._overwrite:
            return
        if difference := _difference(resolved, self._resolved):
            key, there, here = difference
            raise RunDirectoryError(
                f"{self.path} holds another configuration: {key} is {there!r} there and {here!r} here; set another "
                "run.directory, or run.overwrite=true to delete that run"
            )
        if (self.path / "checkpoints").exists() and self.summary is None:
            raise RunDirectoryError(
                f"{self.path} holds checkpoints of this run, which did not finish; set run.overwrite=true to delete them and "
                "start again, or another run.directory"
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

    def start(self) -> None:
        """An empty directory with the resolved configuration. What an unfinished run left is deleted."""
        self.check()
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        (self.path / "config.json").write_text(json.dumps(self._resolved, indent=2) + "\n")

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json: the run is done."""
        (self.path / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _difference(there: Any, here: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two configurations differ; `run.overwrite` does not count."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*here, *(name for name in there if name not in here)]:
            path = f"{key}.{name}".lstrip(".")
            if path != "run.overwrite" and (found := _difference(there.get(name), here.get(name), path)):
                return found
        return None
    return None if there == here else (key, there, here)
