"""The files of rows load as one data set, whatever the first of them holds, and are a source of other stages as they are."""

from pathlib import Path
from typing import Any

import pytest

from minidist.config.data import SourceConfig
from minidist.data.files import read_source
from minidist.pipelines.card import write_card
from minidist.pipelines.shards import Shards

FULL: dict[str, Any] = {"key": "0", "answer": "4", "votes": [{"form": "4", "count": 2}], "sums": [-1.0], "gold": 3}
BARE: dict[str, Any] = {"key": "1", "answer": None, "votes": [], "sums": [None], "gold": 3.5}
FAILED = {"key": "2", "error": "too long"}


def written(folder: Path, ending: str, *files: list[dict[str, Any]]) -> Shards:
    shards = Shards(folder, ending, 2)
    for number, rows in enumerate(files):
        shards.write(number, rows)
    write_card(shards)
    return shards


def loaded(folder: Path) -> Any:
    from datasets import load_dataset

    return load_dataset(str(folder / "rows"), cache_dir=str(folder / "cache"))["train"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("files", [([BARE], [FULL]), ([FULL], [BARE]), ([FULL, BARE], [BARE])], ids=["bare", "full", "both"])
def test_columns_that_are_empty_in_one_file_load(tmp_path: Path, ending: str, files: tuple[list[dict[str, Any]], ...]) -> None:
    written(tmp_path, ending, *files)
    rows = [row for file in files for row in file]
    assert list(loaded(tmp_path)) == rows


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_file_whose_rows_have_all_failed_is_passed_over(tmp_path: Path, ending: str) -> None:
    shards = written(tmp_path, ending, [FAILED], [FULL], [FAILED])
    assert list(loaded(tmp_path)) == [FULL] and list(shards.read(0)) == [FAILED]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_folder_is_a_source_as_it_is(tmp_path: Path, ending: str) -> None:
    written(tmp_path, ending, [FULL], [BARE])
    assert list(read_source(SourceConfig(path=str(tmp_path / "rows")))) == [FULL, BARE]


def test_a_saved_copy_of_the_data_set_is_a_source_too(tmp_path: Path) -> None:
    written(tmp_path, "parquet", [FULL], [BARE])
    loaded(tmp_path).save_to_disk(str(tmp_path / "saved"))
    assert list(read_source(SourceConfig(path=str(tmp_path / "saved")))) == [FULL, BARE]


def test_columns_of_no_one_type_are_said_and_get_no_card(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from minidist.run.tracking import log

    log.propagate = True
    with caplog.at_level("INFO"):
        shards = written(tmp_path, "jsonl", [{"key": "0", "gold": 3}], [{"key": "1", "gold": "three"}])
    assert "columns of several types" in caplog.text and "gold" in caplog.text
    assert [path.name for path in sorted(shards.folder.iterdir())] == ["part-000000.jsonl", "part-000001.jsonl"]


def test_nothing_but_the_card_is_added(tmp_path: Path) -> None:
    shards = written(tmp_path, "jsonl", [FULL])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows"]
    assert sorted(path.name for path in shards.folder.iterdir()) == ["README.md", "part-000000.jsonl"]
