"""Shards: whole or absent, written once, in both forms."""

from pathlib import Path
from typing import Any

import pytest

from minidist.errors import RunDirectoryError
from minidist.pipelines.shards import Shards

ROWS: list[dict[str, Any]] = [
    {"key": "0", "answers": ["ä", ""], "logprob_sums": [-1.5, None], "kept": True},
    {"key": "1", "error": "too long"},
]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_results_are_read_as_they_were_written(tmp_path: Path, ending: str) -> None:
    shards = Shards(tmp_path, ending, 2)
    shards.write(3, ROWS)
    assert list(shards.read(3)) == ROWS
    assert shards.done(3) and not shards.done(2) and shards.numbers() == [3]
    assert [path.name for path in (tmp_path / "rows").iterdir()] == [f"part-000003.{ending}"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_datasets_package_loads_the_folder(tmp_path: Path, ending: str) -> None:
    from datasets import load_dataset

    shards = Shards(tmp_path, ending, 2)
    shards.write(0, ROWS)
    shards.write(1, ROWS[:1])
    kind = "json" if ending == "jsonl" else ending
    loaded = load_dataset(kind, data_files=str(tmp_path / f"rows/*.{ending}"), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].num_rows == 2


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/part-000000.partial").write_text('{"key"')
    shards = Shards(tmp_path, "jsonl", 1)
    assert list((tmp_path / "rows").iterdir())  # another process may be writing it: only who begins a job cleans
    shards.clean()
    assert not list((tmp_path / "rows").iterdir()) and shards.numbers() == []


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "jsonl", 1)
    shards.path(0).write_text("{")
    with pytest.raises(RunDirectoryError, match=r"part-000000.jsonl cannot be read .*delete it"):
        list(shards.read(0))
