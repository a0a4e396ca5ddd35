"""Checkpoints: written whole or not at all, checked by their sums before they are read, the newest few kept.

checkpoints/step_000050/ holds the model as transformers and vLLM load it, `training/` (trained weights in the optimizer's
precision and its moments, whole tensors by parameter name, so that any number of ranks can go on from them),
`state.json` (steps, data source, evaluations, length of metrics.jsonl) and `sums.json`. Random numbers need no state: every
one is a function of (run.seed, step, row, sample).
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minidist.errors import RunDirectoryError
from minidist.protocols import Learner
from minidist.run.tracking import log

_SUMS = "sums.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole one: where it lies, and the state beside the learner's."""

    path: Path
    step: int
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run; `kept` newest stay."""

    def __init__(self, directory: Path, kept: int) -> None:
        self._directory, self._kept = directory, kept

    async def write(self, step: int, learner: Learner, state: dict[str, Any]) -> None:
        """Under another name first: only a whole checkpoint is ever called step_*."""
        path, partial = self._directory / f"step_{step:06d}", self._directory / f".step_{step:06d}"
        for left in self._directory.glob(".step_*"):  # by a run that was killed while it wrote
            shutil.rmtree(left)
        partial.mkdir(parents=True)
        await learner.save(partial)
        await learner.save_state(partial)
        (partial / "state.json").write_text(json.dumps({"step": step, **state}) + "\n")
        await asyncio.to_thread(_seal, partial)
        if path.exists():  # out of the way first: to delete it takes time, in which there would be neither
            path.rename(self._directory / f".step_{step:06d}.old")
        partial.rename(path)
        _sync(self._directory)
        there = self._there()
        place = there.index(path)
        # Later ones were passed over as damaged, and this run has taken another way since.
        for old in [*there[: max(0, place + 1 - self._kept)], *there[place + 1 :], *self._directory.glob(".step_*")]:
            shutil.rmtree(old)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None when there is none at all. Raises RunDirectoryError when all are damaged."""
        there = self._there()
        for path in reversed(there):
            if (damage := _damage(path)) is None:
                state = json.loads((path / "state.json").read_text())
                return Checkpoint(path, state["step"], state)
            log.warning("checkpoint %s is damaged (%s) and is passed over", path, damage)
        if there:
            raise RunDirectoryError(
                f"every checkpoint under {self._directory} is damaged; set run.overwrite=true to start the run again"
            )
        return None

    def _there(self) -> list[Path]:
        found = [path for path in self._directory.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def _seal(path: Path) -> None:
    """Write the sums of all files, and have everything on disk before the directory gets its name."""
    # A tokenizer of several chat templates has a folder of its own for them.
    sums = {str(file.relative_to(path)): _sum(file) for file in sorted(path.rglob("*")) if file.is_file()}
    (path / _SUMS).write_text(json.dumps(sums, indent=2) + "\n")
    for file in [*path.rglob("*"), path]:
        _sync(file)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _damage(path: Path) -> str | None:
    """The first thing wrong with a checkpoint, or None."""
    try:
        sums: dict[str, str] = json.loads((path / _SUMS).read_text())
    except (OSError, ValueError):
        return f"no {_SUMS} that can be read"
    for name, expected in sums.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sum(path / name) != expected:
            return f"{name} has changed"
    return None


def _sum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
