"""Writes a score cache. A shard is complete or absent, so that an interrupted run can resume."""

import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from minidist.run.files import lock, rename, sha256, write_json
from minidist.teachers.cache.store import ARRAYS, FORMAT, INDEX, Origin, ScoreCache, check_origin, key_of
from minidist.types import Array, Rollout, TeacherScores


class ScoreWriter:
    """Adds rows to a cache, one shard at a time. Rows of the same origin stay; a cache of another origin is refused."""

    def __init__(self, path: Path, origin: Origin, *, shard_rows: int) -> None:
        self._path, self._origin, self._shard_rows = path, origin, shard_rows
        self._lock = lock(path, use="writing to the cache", setting="cache")
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
        self._lock.close()

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
        digest = sha256(partial)
        rename(partial, file)
        self.bytes += file.stat().st_size
        self._shards.append({"file": file.name, "rows": len(rows), "tokens": sum(lengths), "sha256": digest})
        self._index()

    def _index(self) -> None:
        index = {"format": FORMAT, "origin": asdict(self._origin), "hidden_dtype": self._hidden_dtype, "shards": self._shards}
        write_json(self._path / INDEX, index)

    def _clear(self) -> None:
        """Remove files that a killed process left, and damaged shards."""
        listed = {shard["file"] for shard in self._shards}
        for file in self._path.glob("scores-*"):
            if file.name not in listed:
                file.unlink()


def _first(scores: TeacherScores) -> Array:
    """Any array of the scores: its first axis counts the tokens."""
    return next(array for name in ARRAYS if (array := getattr(scores, name)) is not None)
