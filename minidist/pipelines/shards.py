"""The output of a pipeline: files of a fixed number of rows, each written once, whole or not at all."""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from minidist.errors import RunDirectoryError
from minidist.run.files import rename, writing

Result = dict[str, Any]


class Shards:
    """Files FOLDER/rows/part-000000.ENDING. Shard s holds the results of `rows` rows of the source from s * rows on, in order.

    A file that exists is whole, and is never written again. Failed rows have other columns, and stand in FOLDER/failed, so that
    all files of rows load as one data set.
    """

    def __init__(self, folder: Path, ending: str, rows: int) -> None:
        self.folder, self.rows, self._ending = folder / "rows", rows, ending
        self._failed = folder / "failed"
        self.folder.mkdir(parents=True, exist_ok=True)

    def clean(self) -> None:
        """Remove what an earlier process left half-written; for the one process that begins a job."""
        for partial in chain(self.folder.glob("*.partial"), self._failed.glob("*.partial")):
            partial.unlink()

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.{self._ending}"

    def done(self, number: int) -> bool:
        """Whether a shard is written."""
        return self.path(number).is_file()

    def write(self, number: int, results: Sequence[Result]) -> None:
        """Write a shard, its failed rows first, so that it is done once its rows are written. Raises DiskFullError."""
        if failed := [each for each in results if "error" in each]:
            self._failed.mkdir(exist_ok=True)
            _write(self._failed / f"part-{number:06d}.jsonl", "jsonl", failed)
        _write(self.path(number), self._ending, [each for each in results if "error" not in each])

    def read(self, number: int) -> Iterator[Result]:
        """The results of a shard, failed rows last. Raises RunDirectoryError where a file is damaged."""
        path, failed = self.path(number), self._failed / f"part-{number:06d}.jsonl"
        yield from _read(path, self._ending)
        if failed.is_file():
            yield from _read(failed, "jsonl")

    def numbers(self) -> list[int]:
        """The shards that are written, in order."""
        return sorted(int(path.stem.removeprefix("part-")) for path in self.folder.glob(f"part-*.{self._ending}"))


def _write(path: Path, ending: str, results: Sequence[Result]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")  # a worker of a killed job may still be writing the same shard
    with writing(path):
        _WRITERS[ending](partial, results)
        rename(partial, path)


def _read(path: Path, ending: str) -> Iterator[Result]:
    try:
        yield from _READERS[ending](path)
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{path} cannot be read ({error}); delete it, and give the same command again") from None


def _write_jsonl(path: Path, results: Sequence[Result]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in results)


def _read_jsonl(path: Path) -> Iterator[Result]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _write_parquet(path: Path, results: Sequence[Result]) -> None:
    import pyarrow
    import pyarrow.parquet

    names = dict.fromkeys(name for each in results for name in each)
    columns = {name: [each.get(name) for each in results] for name in names}
    table = pyarrow.table(columns)
    with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
        if len(table):  # `datasets` refuses groups without rows
            writer.write_table(table)


def _read_parquet(path: Path) -> Iterator[Result]:
    import pyarrow.parquet

    yield from pyarrow.parquet.read_table(path).to_pylist()


_WRITERS = {"jsonl": _write_jsonl, "parquet": _write_parquet}
_READERS = {"jsonl": _read_jsonl, "parquet": _read_parquet}
