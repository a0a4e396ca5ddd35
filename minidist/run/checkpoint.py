"""Checkpoints: written whole or not at all, verified by checksum before they are read, the newest few kept.

checkpoints/step_000050/ holds the model as transformers and vLLM load it, `training/` (trained weights in the optimizer's
precision and its moments, whole tensors by parameter name, so that any number of ranks can resume from them),
`state.json` (steps, data source, evaluations, length of metrics.jsonl) and `sums.json`. Random numbers need no state: every
one is a function of (run.seed, step, row, sample).
"""

import asyncio
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minidist.errors import RunDirectoryError
from minidist.protocols import Learner
from minidist.run.files import damage, rename, sha256, sync
from minidist.run.tracking import log

_SUMS = "sums.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its directory, its step, and the state of everything but the learner."""

    path: Path
    step: int
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run; the `kept` newest stay."""

    def __init__(self, directory: Path, kept: int) -> None:
        self._directory = directory
        self._kept = kept

    async def write(self, step: int, learner: Learner, state: dict[str, Any]) -> None:
        """Write a checkpoint under a hidden name, and rename it when it is whole."""
        path, partial = self._directory / f"step_{step:06d}", self._directory / f".step_{step:06d}"
        for unfinished in self._directory.glob(".step_*"):  # of a run that was killed while it wrote
            shutil.rmtree(unfinished)
        partial.mkdir(parents=True)
        await learner.save(partial)
        await learner.save_state(partial)
        (partial / "state.json").write_text(json.dumps({"step": step, **state}) + "\n")
        await asyncio.to_thread(_seal, partial)
        if path.exists():  # renamed, since deleting takes time, in which a crash would leave no checkpoint of this step
            path.rename(self._directory / f".step_{step:06d}.old")
        rename(partial, path)
        paths = self._paths()
        index = paths.index(path)
        # Checkpoints of later steps were skipped as damaged when this run resumed, and belong to steps that it takes again.
        for old in [*paths[: max(0, index + 1 - self._kept)], *paths[index + 1 :], *self._directory.glob(".step_*")]:
            shutil.rmtree(old)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None when the run has none. Raises RunDirectoryError when all are damaged."""
        paths = self._paths()
        for path in reversed(paths):
            if (fault := _fault(path)) is None:
                state = json.loads((path / "state.json").read_text())
                return Checkpoint(path, state["step"], state)
            log.warning("checkpoint %s is damaged (%s) and is skipped", path, fault)
        if paths:
            remedy = "set run.overwrite=true to start the run again"
            raise RunDirectoryError(f"every checkpoint under {self._directory} is damaged; {remedy}")
        return None

    def _paths(self) -> list[Path]:
        """All checkpoints, damaged ones included, by step."""
        found = [path for path in self._directory.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def _seal(path: Path) -> None:
    """Write the sums of all files, and force every file to the disk."""
    # A tokenizer with several chat templates keeps them in a subdirectory.
    sums = {str(file.relative_to(path)): sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
    (path / _SUMS).write_text(json.dumps(sums, indent=2) + "\n")
    for file in path.rglob("*"):
        sync(file)


def _fault(path: Path) -> str | None:
    """The first fault of a checkpoint; None for an intact one."""
    try:
        sums: dict[str, str] = json.loads((path / _SUMS).read_text())
    except (OSError, ValueError):
        return f"{_SUMS} is missing or unreadable"
    faults = (f"{name} {fault}" for name, expected in sums.items() if (fault := damage(path / name, expected)))
    return next(faults, None)
