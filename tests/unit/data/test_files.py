"""Rows of data files of every kind, as the file writes them; what cannot be read is one sentence."""

import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from pyarrow import parquet

from minidist.config.data import SourceConfig
from minidist.data import files
from minidist.data.files import read_file, read_source
from minidist.data.sources import check_source
from minidist.data.templates import Template
from minidist.errors import DataError

CELLS = ['"1987-03-02"', '"007"', "1.50", "12345678901234567890123", "true", "null", '"x"', "[1.50, null]", '{"a": 1.10}']


def shown(rows: Any, template: str = "{{ c }}") -> list[str]:
    return [Template(template, "prompt").fill(row) for row in rows]


def test_json_cells_keep_their_text_in_a_column_of_mixed_types(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("".join(f'{{"c": {cell}}}\n' for cell in CELLS))
    (tmp_path / "r.json").write_text(" [" + ", ".join(f'{{"c": {cell}}}' for cell in CELLS) + "]")
    for name in ("r.jsonl", "r.json"):
        assert shown(read_file(tmp_path / name), "{{ c | tojson }}") == CELLS
        plain = shown(list(read_file(tmp_path / name))[:7])
        assert plain == ["1987-03-02", "007", "1.50", "12345678901234567890123", "true", "", "x"]


def test_csv_cells_are_text(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('c,d\n007,1.50\n1987-03-02,"a, b\nc"\n,TRUE\n', encoding="utf-8-sig")
    assert [(row["c"], row["d"]) for row in read_file(tmp_path / "r.csv")] == [
        ("007", "1.50"),
        ("1987-03-02", "a, b\nc"),
        ("", "TRUE"),
    ]
    (tmp_path / "r.tsv").write_text("c\td\n007\t1.50\n")
    assert list(read_file(tmp_path / "r.tsv")) == [{"c": "007", "d": "1.50"}]


def test_parquet_cells_are_shown_as_their_text(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"s": ["007"], "d": [date(1987, 3, 2)], "t": [datetime(1987, 3, 2, 4, 5)], "n": [{"a": [None, 1]}], "i": [2**62]}
    )
    parquet.write_table(table, tmp_path / "r.parquet")
    template = "{{ s }} {{ d }} {{ t }} {{ n | tojson }} {{ i }}"
    assert shown(read_file(tmp_path / "r.parquet"), template) == [
        '007 1987-03-02 1987-03-02 04:05:00 {"a": [null, 1]} 4611686018427387904'
    ]


@pytest.mark.parametrize(("ending", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_files_are_read(tmp_path: Path, ending: str, opener: Callable[..., Any]) -> None:
    with opener(tmp_path / f"r.jsonl{ending}", "wt") as file:
        file.write('{"c": "é"}\n\n{"c": 2}\n')
    assert shown(read_file(tmp_path / f"r.jsonl{ending}")) == ["é", "2"]


def broken(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        for _ in read_file(path):
            pass
    return str(error.value)


def test_files_that_cannot_be_read_name_the_file_and_the_row(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f'{{"c": "{number}"}}\n' for number in range(20000)).encode())
    assert "is damaged or cut short after row" in broken(tmp_path / "a.jsonl.gz", whole[: len(whole) // 2])
    assert "damaged" in broken(tmp_path / "b.jsonl.gz", whole[:2000] + b"\0" * 50 + whole[2050:])
    assert "damaged" in broken(tmp_path / "c.jsonl.gz", b"no gzip")
    assert "row 1: the file is not UTF-8" in broken(tmp_path / "d.jsonl", b'{"c": "a"}\n{"c": "\xe9"}\n')
    assert "row 1: the row cannot be read" in broken(tmp_path / "e.jsonl", b'{"c": 1}\n{"c": \n')
    assert "row 0: expected an object with columns, found list" in broken(tmp_path / "f.jsonl", b"[1]\n")
    assert "nested too deeply" in broken(tmp_path / "g.jsonl", b"[" * 100_000 + b"\n")
    assert "cannot be read as Parquet" in broken(tmp_path / "h.parquet", b"no parquet")
    assert "more cells than the header" in broken(tmp_path / "i.csv", b"a\n1,2\n")
    assert "unknown ending; expected .jsonl" in broken(tmp_path / "j.xml", b"<a/>")


def test_rows_of_nulls_alone_are_rows(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"c": null}\n' * 3)
    assert list(read_file(tmp_path / "r.jsonl")) == [{"c": None}] * 3


def test_a_saved_data_set_is_a_source(tmp_path: Path) -> None:
    parts = {"train": Dataset.from_list([{"c": "1"}]), "test": Dataset.from_list([{"c": "2"}])}
    DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["test"].save_to_disk(tmp_path / "one")
    assert list(read_source(SourceConfig(path=str(tmp_path / "both"), split="test"))) == [{"c": "2"}]
    assert list(read_source(SourceConfig(path=str(tmp_path / "one")))) == [{"c": "2"}]
    with pytest.raises(DataError, match="has the splits train, test, not 'dev'"):
        list(read_source(SourceConfig(path=str(tmp_path / "both"), split="dev")))


def test_a_split_of_rows_without_splits_is_refused(tmp_path: Path) -> None:
    Dataset.from_list([{"c": "2"}]).save_to_disk(tmp_path / "one")
    (tmp_path / "rows.jsonl").write_text('{"c": "1"}')
    for name, what in (("one", "a saved data set"), ("rows.jsonl", "a file")):
        with pytest.raises(DataError, match=f"{name} is {what} without splits and subsets, and split is 'test'; set path to"):
            list(read_source(SourceConfig(path=str(tmp_path / name), split="test")))


def test_numbers_of_classes_know_their_names(tmp_path: Path) -> None:
    features = Features({"c": ClassLabel(names=["no", "yes"])})
    saved = Dataset.from_dict({"c": [1, 0, -1]}, features=features)
    saved.to_parquet(tmp_path / "rows.parquet")
    saved.save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "saved"):
        rows = list(read_source(SourceConfig(path=str(tmp_path / name))))
        assert [row["c"] for row in rows] == [1, 0, -1] and [row["c"].name for row in rows] == ["yes", "no", None]
        assert shown(rows) == ["1", "0", "-1"]


def test_a_folder_of_a_directory_is_a_subset(tmp_path: Path) -> None:
    for subset, text in (("a", "1"), ("b", "2")):
        (tmp_path / subset).mkdir()
        (tmp_path / subset / "train-0.jsonl").write_text(json.dumps({"c": text}))
    assert list(read_source(SourceConfig(path=str(tmp_path), subset="b"))) == [{"c": "2"}]
    with pytest.raises(DataError, match="no folder 'c', which subset names"):
        read_source(SourceConfig(path=str(tmp_path), subset="c"))
    with pytest.raises(DataError, match="no data files"):
        (tmp_path / "d").mkdir()
        list(read_source(SourceConfig(path=str(tmp_path), subset="d")))


def test_a_json_list_is_read_one_value_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"c": number, "d": "x, ] }" * number, "e": [1.5, {"f": None}]} for number in range(40)]
    monkeypatch.setattr("minidist.data.files._CHUNK", 7)
    for text in (json.dumps(rows), json.dumps(rows, indent=2), json.dumps(rows, separators=(",", ":"))):
        (tmp_path / "r.json").write_text(f"\n {text} \n")
        assert list(read_file(tmp_path / "r.json")) == rows
    (tmp_path / "r.json").write_text("[]")
    assert list(read_file(tmp_path / "r.json")) == []
    for text, reason in (
        (json.dumps(rows)[:-1], "no closing bracket"),
        (json.dumps(rows)[:-9], "row 39: the row cannot be read"),
    ):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(DataError, match=reason):
            list(read_file(tmp_path / "r.json"))


def test_eight_rows_of_a_large_file_cost_eight_rows(tmp_path: Path) -> None:
    """Peak memory of a process that reads the first rows of a file of 300,000 rows, against one of a file of 8."""
    row = json.dumps({"prompt": "word " * 40, "answer": "x"}) + "\n"
    for name, rows in (("few", 8), ("many", 300_000)):
        (tmp_path / f"{name}.jsonl").write_text(row * rows)
        (tmp_path / f"{name}.json").write_text("[" + (row + ",") * (rows - 1) + row + "]")
    script = (
        "import resource, sys\nfrom itertools import islice\nfrom pathlib import Path\n"
        "from minidist.data.files import read_file\nassert len(list(islice(read_file(Path(sys.argv[1])), 8))) == 8\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    for ending in ("jsonl", "json"):
        few, many = (
            int(subprocess.run([sys.executable, "-c", script, tmp_path / f"{name}.{ending}"], capture_output=True).stdout)
            for name in ("few", "many")
        )
        assert many < few + 2048  # KiB
    check_source(SourceConfig(path=str(tmp_path / "many.jsonl")))


@pytest.mark.parametrize("damage", ["offsets", "cut"])
def test_a_damaged_saved_data_set_is_refused_and_kills_no_process(tmp_path: Path, damage: str) -> None:
    Dataset.from_dict({"c": ["a", "b"]}).save_to_disk(tmp_path / "saved")
    [file] = (tmp_path / "saved").glob("*.arrow")
    offsets = pyarrow.py_buffer(np.array([0, 2**30, 2], dtype=np.int32).tobytes())
    false = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"ab"))
    batch = pyarrow.record_batch([false if damage == "offsets" else pyarrow.array(["a", "b"])], names=["c"])
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match="saved cannot be read as a saved data set: "):
        list(read_source(SourceConfig(path=str(tmp_path / "saved"))))


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LONGEST_LINE", 1 << 20)
    for name in ("a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress((b'["' if "json." in name else b"x") + b"x" * (3 << 20)))
        with pytest.raises(DataError):
            list(read_source(SourceConfig(path=str(tmp_path / name))))
