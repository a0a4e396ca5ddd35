"""Writes a score cache. A shard is complete or absent, so that an interrupted run can resume."""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from minidist.errors import ConfigError
from minidist.run.files import lock, rename, sha256, write_json, writing
from minidist.teachers.cache.store import (
    ARRAYS,
    FORMAT,
    INDEX,
    Origin,
    ScoreCache,
    Shard,
    check_origin,
    key_of,
    origin_of_shard,
    read_rows,
)
from minidist.types import Array, Rollout, TeacherScores

SHARDS = "scores-[0-9][0-9][0-9][0-9][0-9].safetensors"


class ScoreWriter:
    """Adds rows to a cache, one shard at a time. Rows of the same origin stay; a cache of another origin is refused."""

    def __init__(self, path: Path, origin: Origin, *, shard_rows: int) -> None:
        self._path, self._origin, self._shard_rows = path, origin, shard_rows
        self._lock = lock(path, use="writing to the cache", setting="cache")
        self._adding = threading.Lock()  # a run that is stopped closes while its last rows are still being added
        self._held: list[tuple[Rollout, TeacherScores]] = []
        if not (path / INDEX).exists():
            self._recover()
        self.existing = ScoreCache(path, mend=True)
        check_origin(path, origin, writing=True)
        self.bytes = self.existing.bytes
        self._shards = list(self.existing.shards)
        self._index(self._shards, self.existing.hidden_dtype)
        # Files that a killed process left, and damaged shards.
        listed = {shard["file"] for shard in self._shards}
        for file in path.glob("scores-*"):
            if file.name not in listed:
                file.unlink()

    def add(self, rollouts: Sequence[Rollout], scores: Sequence[TeacherScores]) -> None:
        """Add rows that the cache lacks, with their scores. Complete shards are written immediately."""
        with self._adding:
            self._held += zip(rollouts, scores, strict=True)
            while len(self._held) >= self._shard_rows:
                self._write(self._held[: self._shard_rows])
                del self._held[: self._shard_rows]

    def close(self) -> None:
        """Write the remaining rows, as a smaller shard."""
        with self._adding:
            if self._held:
                self._write(self._held)
                self._held = []
        self._lock.close()

    def _write(self, rows: list[tuple[Rollout, TeacherScores]]) -> None:
        """Write a shard under a temporary name, and list it once it is complete."""
        lengths = [len(rollout.tokens) for rollout, _ in rows]
        tensors: dict[str, Array] = {
            "keys": np.frombuffer(b"".join(key_of(rollout) for rollout, _ in rows), dtype=np.uint8).reshape(-1, 32),
            "starts": np.cumsum([0, *lengths], dtype=np.int64),
        }
        for name in ARRAYS:
            if getattr(rows[0][1], name) is not None:
                tensors[name] = np.concatenate([getattr(scores, name) for _, scores in rows])
        file = self._path / f"scores-{self._next():05d}.safetensors"
        partial, facts = file.with_suffix(".partial"), {"origin": json.dumps(asdict(self._origin))}
        with writing(file):
            save_file(tensors, partial, metadata=facts | {"hidden_dtype": rows[0][1].hidden_dtype})
            digest = sha256(partial)
            rename(partial, file)
        self.bytes += file.stat().st_size
        self._shards.append({"file": file.name, "rows": len(rows), "tokens": sum(lengths), "sha256": digest})
        self._index(self._shards, rows[0][1].hidden_dtype)

    def _next(self) -> int:
        """A number that no file has."""
        return 1 + max((int(file.stem[7:]) for file in self._path.glob(SHARDS)), default=-1)

    def _recover(self) -> None:
        """Write a lost cache.json anew from the shards, which name their teacher. Raises ConfigError where one does not."""
        shards: list[Shard] = []
        dtype = "float32"
        for file in sorted(self._path.glob(SHARDS)):
            facts = origin_of_shard(file)
            if facts is None or facts[0] != self._origin:
                whose = "does not say whose scores it holds" if facts is None else f"holds scores of {facts[0].model}"
                found = f"{INDEX} is lost, and {file.name} {whose}"
                self._lock.close()
                raise ConfigError(f"the cache {self._path} cannot be continued: {found}; set another cache, or remove that one")
            dtype = facts[1]
            _, starts = read_rows(file, self._origin)
            shards.append({"file": file.name, "rows": len(starts) - 1, "tokens": starts[-1], "sha256": sha256(file)})
        self._index(shards, dtype)

    def _index(self, shards: list[Shard], hidden_dtype: str) -> None:
        index = {"format": FORMAT, "origin": asdict(self._origin), "hidden_dtype": hidden_dtype, "shards": shards}
        write_json(self._path / INDEX, index)
