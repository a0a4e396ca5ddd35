"""Writes a score cache. A shard is complete or absent, so that an interrupted run can resume."""

import fcntl
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from minidist.errors import RunDirectoryError
from minidist.teachers.cache.store import ARRAYS, FORMAT, INDEX, Origin, ScoreCache, check_origin, key_of, sum_of
from minidist.types import Array, Rollout, TeacherScores

_LOCK = ".lock"


class ScoreWriter:
    """Adds rows to a cache, one shard at a time. Rows of the same origin stay; a cache of another origin is refused."""

    def __init__(self, path: Path, origin: Origin, *, shard_rows: int) -> None:
        self._path, self._origin, self._shard_rows = path, origin, shard_rows
        path.mkdir(parents=True, exist_ok=True)
        self._lock()
        existing = ScoreCache(path, mend=True) if (path / INDEX).exists() else None
        if existing is not None:
            check_origin(path, origin, writing=True)
        self._shards = [] if existing is None else list(existing.shards)
        self._hidden_dtype = "float32" if existing is None else existing.hidden_dtype
        self._held: list[tuple[bytes, TeacherScores]] = []
        self.bytes = 0 if existing is None else existing.bytes
        self.existing = existing
        self._adding = threading.Lock()  # a run that is stopped closes while its last rows are still being added
        self._index()
        self._clear()

    def add(self, rollouts: Sequence[Rollout], scores: Sequence[TeacherScores]) -> None:
        """Add rows that the cache lacks, with their scores. Complete shards are written immediately."""
        with self._adding:
            self._add(rollouts, scores)

    def close(self) -> None:
        """Write the remaining rows, as a smaller shard."""
        with self._adding:
            if self._held:
                self._write(self._held)
                self._held = []
        self._locked.close()

    def _add(self, rollouts: Sequence[Rollout], scores: Sequence[TeacherScores]) -> None:
        self._held += [(key_of(rollout), scored) for rollout, scored in zip(rollouts, scores, strict=True)]
        while len(self._held) >= self._shard_rows:
            self._write(self._held[: self._shard_rows])
            del self._held[: self._shard_rows]

    def _write(self, rows: list[tuple[bytes, TeacherScores]]) -> None:
        """Write a shard under a temporary name, and list it once it is complete."""
        lengths = [len(_first(scores)) for _, scores in rows]
        tensors: dict[str, Array] = {
            "keys": np.frombuffer(b"".join(key for key, _ in rows), dtype=np.uint8).reshape(-1, 32),
            "starts": np.cumsum([0, *lengths], dtype=np.int64),
        }
        for name in ARRAYS:
            if getattr(rows[0][1], name) is not None:
                tensors[name] = np.concatenate([getattr(scores, name) for _, scores in rows])
        self._hidden_dtype = rows[0][1].hidden_dtype
        number = 1 + max((int(shard["file"][7:-12]) for shard in self._shards), default=-1)
        file = self._path / f"scores-{number:05d}.safetensors"
        partial = file.with_suffix(".partial")
        save_file(tensors, partial)
        digest = sum_of(partial)
        _replace(partial, file)
        self.bytes += file.stat().st_size
        self._shards.append({"file": file.name, "rows": len(rows), "tokens": sum(lengths), "sha256": digest})
        self._index()

    def _index(self) -> None:
        index = {"format": FORMAT, "origin": asdict(self._origin), "hidden_dtype": self._hidden_dtype, "shards": self._shards}
        partial = self._path / f"{INDEX}.partial"
        partial.write_text(json.dumps(index, indent=2) + "\n")
        _replace(partial, self._path / INDEX)

    def _clear(self) -> None:
        """Remove files that a killed process left, and damaged shards."""
        listed = {shard["file"] for shard in self._shards}
        for file in self._path.glob("scores-*"):
            if file.name not in listed:
                file.unlink()

    def _lock(self) -> None:
        """Held until this process ends, however it ends."""
        self._locked = (self._path / _LOCK).open("w")
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._locked.close()
            raise RunDirectoryError(
                f"another process is writing to the cache {self._path}; wait for it to end, or set another cache"
            ) from None


def _first(scores: TeacherScores) -> Array:
    """Any array of the scores: its first axis counts the tokens."""
    return next(array for name in ARRAYS if (array := getattr(scores, name)) is not None)


def _replace(partial: Path, file: Path) -> None:
    """On disk before it gets its name."""
    for path, into in ((partial, file), (file.parent, None)):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        if into is not None:
            path.replace(into)
