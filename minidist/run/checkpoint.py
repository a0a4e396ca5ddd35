"""Checkpoints: written whole or not at all, verified by checksum before they are read, the newest few kept.

checkpoints/step_000050/ holds the model as transformers and vLLM load it, `training/` (trained weights in the optimizer's
precision and its moments: each rank's elements, by parameter name, so that any number of ranks can resume from them),
`state.json` (steps, data source, evaluations, length of metrics.jsonl) and `sums.json`. Random numbers need no state: every
one is a function of (run.seed, step, row, sample).
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

from pydantic import NonNegativeInt, with_config
from typing_extensions import TypedDict

from minidist.errors import DiskFullError, RunDirectoryError
from minidist.protocols import Saves
from minidist.run.files import damage, read_record, remove, rename, sha256, sync, writing
from minidist.run.tracking import log

_SUMS = "sums.json"
_STATE = "state.json"
_REMEDY = "set run.overwrite=true to start the run again"


@with_config(extra="allow")
class State(TypedDict):
    """The fields of state.json that every run has."""

    step: NonNegativeInt
    metrics_bytes: NotRequired[NonNegativeInt]


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

    async def write(self, step: int, learner: Saves, state: dict[str, Any]) -> None:
        """Write a checkpoint under a hidden name, and rename it when it is whole. Raises DiskFullError, and frees its files."""
        path, partial = self._directory / f"step_{step:06d}", self._directory / f".step_{step:06d}"
        for unfinished in self._directory.glob(".step_*"):  # of a run that was killed while it wrote
            remove(unfinished)
        try:
            with writing(path):
                await self._write(path, partial, learner, {"step": step, **state})
        except DiskFullError:
            if partial.exists():
                remove(partial)
            raise

    async def _write(self, path: Path, partial: Path, learner: Saves, state: dict[str, Any]) -> None:
        partial.mkdir(parents=True)
        sums = await learner.save(partial)
        check_seen(partial)
        sums |= await learner.save_state(partial)
        (partial / _STATE).write_text(json.dumps(state) + "\n")
        await asyncio.to_thread(_seal, partial, sums)
        if path.exists():  # renamed, since deleting takes time, in which a crash would leave no checkpoint of this step
            path.rename(partial.with_suffix(".old"))
        rename(partial, path)
        paths = self._paths()
        index = paths.index(path)
        # Checkpoints of later steps were skipped as damaged when this run resumed, and belong to steps that it takes again.
        for old in [*paths[: max(0, index + 1 - self._kept)], *paths[index + 1 :], *self._directory.glob(".step_*")]:
            remove(old)

    @property
    def last(self) -> int | None:
        """The step of the last checkpoint, damaged or not; None without any."""
        paths = self._paths()
        return int(paths[-1].name.removeprefix("step_")) if paths else None

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None when the run has none. Raises RunDirectoryError when all are damaged."""
        if self._directory.exists() and not self._directory.is_dir():
            raise RunDirectoryError(f"{self._directory} is not a directory of checkpoints; {_REMEDY}")
        paths = self._paths()
        for path in reversed(paths):
            try:
                return _read(path)
            except RunDirectoryError as fault:
                log.warning("checkpoint %s is damaged: %s", path, fault)
        if paths:
            raise RunDirectoryError(f"every checkpoint under {self._directory} is damaged; {_REMEDY}")
        return None

    def _paths(self) -> list[Path]:
        """All checkpoints, damaged ones included, by step."""
        found = [path for path in self._directory.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def check_seen(path: Path) -> None:
    """Raise RunDirectoryError unless this process sees the weights that a learner, perhaps on another node, has written."""
    if not any(path.glob("*.safetensors")):
        raise RunDirectoryError(
            f"the learner has written its weights to {path}, and they are not there on this machine; set run.directory to a "
            "directory on a file system that all nodes share"
        )


def _seal(path: Path, known: Mapping[str, str]) -> None:
    """Write the sums of all files, those `known` as they are, and force every file to the disk. Raises RunDirectoryError where
    a file that a rank has written is not here."""
    # A tokenizer with several chat templates keeps them in a subdirectory.
    files = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    if missing := sorted(set(known) - set(files)):
        raise RunDirectoryError(
            f"a rank has written {missing[0]} of {path.parent}, but the file is not on this machine; set run.directory to a "
            "file system that all machines of the run share"
        )
    sums = {name: known.get(name) or sha256(file) for name, file in files.items()}
    (path / _SUMS).write_text(json.dumps(sums, indent=2) + "\n")
    for file in path.rglob("*"):
        sync(file)


def _read(path: Path) -> Checkpoint:
    """A checkpoint, if its files are those that were written. Raises RunDirectoryError."""
    remedy = "it is skipped"
    sums = read_record(path / _SUMS, dict[str, str], remedy)
    read = {_STATE, *(str(file.relative_to(path)) for file in path.rglob("*.safetensors"))}
    if unknown := sorted(read - sums.keys()):
        raise RunDirectoryError(f"{path / _SUMS} has no sum of {unknown[0]}; {remedy}")
    faults = (f"{name} {fault}" for name, expected in sums.items() if (fault := damage(path / name, expected)))
    if (fault := next(faults, None)) is not None:
        raise RunDirectoryError(f"{fault}; {remedy}")
    state = read_record(path / _STATE, State, remedy)
    return Checkpoint(path, state["step"], dict(state))
