"""Rows of data files, read one after another as the file writes them: a file of which 8 rows are used costs 8 rows."""

import csv
import gzip
import json
import lzma
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from minidist.config.data import SourceConfig
from minidist.data.values import ClassNumber, read_first_json, read_json
from minidist.errors import DataError
from minidist.storage import fetch, is_address

Record = dict[str, Any]

_CHUNK = 1 << 16  # characters of a JSON list that are read at a time
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


def read_source(source: SourceConfig) -> Iterator[Record]:
    """Rows of a file, of a directory or of a data set on the hub; what is at an fsspec address is fetched. Raises DataError
    where they cannot be read."""
    path = fetch(source.path, f"data source {source.path}") if is_address(source.path) else Path(source.path).expanduser()
    if path.is_file():
        _check_undivided(source, f"{path} is a file")
        return read_file(path)
    if path.is_dir():
        return _read_directory(path, source)
    compressed = path.suffixes[-1:] and path.suffixes[-1] in (*_READERS, *_OPENERS)
    if source.path.startswith((".", "/", "~")) or source.path.count("/") > 1 or compressed:
        raise DataError(f"no data file or directory at {source.path}")
    return _read_dataset(source)


def read_file(path: Path) -> Iterator[Record]:
    """Rows of one file, by its ending."""
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in _OPENERS]
    if not endings or endings[-1] not in _READERS:
        raise DataError(f"{path} has an unknown ending; expected {', '.join(_READERS)}, compressed with .gz or .xz or not")
    return _located(path, _READERS[endings[-1]](path))


def _located(path: Path, rows: Iterator[Record]) -> Iterator[Record]:
    """The rows; what goes wrong names the file and the row."""
    count = 0
    try:
        for row in rows:
            if not isinstance(row, dict):
                raise DataError(f"{path}, row {count}: expected an object with columns, found {type(row).__name__}")
            yield row
            count += 1
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, row {count}: the file is not UTF-8 ({error.reason}); convert it to UTF-8") from None
    except _DAMAGE as error:
        raise DataError(f"{path} is damaged or cut short after row {count} ({error}); copy it again") from None
    except RecursionError:
        raise DataError(f"{path}, row {count}: the row is nested too deeply to be read") from None
    except (ValueError, csv.Error, OSError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}, row {count}: the row cannot be read ({reason})") from None


def _text(path: Path) -> IO[str]:
    opener = _OPENERS.get(path.suffix.lower(), open)
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _lines(path: Path) -> Iterator[str]:
    """Lines one by one, so that one that is not UTF-8 is known by its row."""
    with _OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
        for number, line in enumerate(file):
            yield (line.removeprefix(BOM_UTF8) if number == 0 else line).decode()


def _json_lines(path: Path) -> Iterator[Record]:
    return (read_json(line) for line in _lines(path) if line.strip())


def _json(path: Path) -> Iterator[Record]:
    """A list of objects, read one after another; or objects line by line, as in .jsonl."""
    with _text(path) as file:
        start = " "
        while start.isspace():
            start = file.read(1)
        if start == "[":
            yield from _elements(file)
            return
    yield from _json_lines(path)


def _elements(file: IO[str]) -> Iterator[Any]:
    """The values of a JSON list behind its opening bracket, each read when it is asked for."""
    text, size = "", _CHUNK
    while not text.startswith("]"):
        text = text.removeprefix(",").lstrip()
        try:
            value, end = read_first_json(text)
        except ValueError:
            end = 0
        rest = text[end:].lstrip()
        if end and rest.startswith((",", "]")):  # else the value may go on, as 12 does in 123
            yield value
            text, size = rest, _CHUNK
        elif more := file.read(size):
            text, size = (text + more).lstrip(), 2 * size
        else:
            read_first_json(text)  # raises with the reason
            raise ValueError("the list has no closing bracket")


def _separated(path: Path) -> Iterator[Record]:
    """CSV or TSV; every cell is text."""
    csv.field_size_limit(sys.maxsize)
    with _text(path) as file:
        rows = csv.DictReader(file, delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
        for row in rows:
            if None in row:
                raise DataError(f"{path}, line {rows.line_num}: the line has more cells than the header")
            yield row


def _plain_text(path: Path) -> Iterator[Record]:
    return ({"text": line.rstrip("\r\n")} for line in _lines(path))


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = _class_names(file.schema_arrow.metadata)
        for batch in file.iter_batches(batch_size=256):
            yield from _with_classes(batch.to_pylist(), names)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
    ".txt": _plain_text,
}


def _read_directory(path: Path, source: SourceConfig) -> Iterator[Record]:
    """A directory of `datasets.save_to_disk`, or of files whose names or folders say their splits."""
    from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern

    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _read_saved(path, source)
    folder = path / source.subset if source.subset is not None else path
    if not folder.is_dir():
        raise DataError(f"{path} has no folder {source.subset!r}, which subset names")
    try:
        patterns = get_data_patterns(str(folder.absolute()))
    except EmptyDatasetError:
        raise DataError(f"{folder} has no data files; expected {', '.join(_READERS)}") from None
    if source.split not in patterns:
        raise DataError(f"{folder} has the splits {', '.join(map(str, patterns))}, not {source.split!r}; set split")
    found: set[Path] = set()
    for pattern in patterns[source.split]:
        with suppress(FileNotFoundError):  # most of the names under which a split is looked for are not there
            found |= {Path(name) for name in resolve_pattern(pattern, str(folder.absolute()))}
    return (row for file in sorted(filter(_is_data, found)) for row in read_file(file))


def _is_data(path: Path) -> bool:
    return any(ending.lower() in _READERS for ending in path.suffixes)


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Names of the classes of each column of class labels, which the library `datasets` writes into a Parquet file."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, AttributeError, TypeError):  # written by another program
        return {}


def _with_classes(rows: Iterable[Record], names: dict[str, tuple[str, ...]]) -> Iterator[Record]:
    """The rows, whose numbers of classes know the classes' names."""
    if not names:
        yield from rows
        return
    for row in rows:
        numbers = {column: row.get(column) for column in names}
        yield row | {key: ClassNumber(number, names[key]) for key, number in numbers.items() if isinstance(number, int)}


def _named_classes(data: Any) -> Iterator[Record]:
    """The rows of a data set of the library `datasets`, whose numbers of classes know the classes' names."""
    import datasets

    features: dict[str, Any] = data.features or {}
    names = {key: tuple(each.names) for key, each in features.items() if isinstance(each, datasets.ClassLabel) and each.names}
    return _with_classes(data, names)


def _check_undivided(source: SourceConfig, what: str) -> None:
    """Raise DataError where a split or a subset is named of data that has none."""
    for key, given, usual in (("split", source.split, "train"), ("subset", source.subset, None)):
        if given != usual:
            raise DataError(
                f"{what} without splits and subsets, and {key} is {given!r}; set path to the rows of it, or leave {key} out"
            )


def _read_saved(path: Path, source: SourceConfig) -> Iterator[Record]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a saved data set: {' '.join(str(error).split())[:200]}") from None
    if isinstance(saved, datasets.DatasetDict):
        if source.split not in saved:
            raise DataError(f"{path} has the splits {', '.join(map(str, saved))}, not {source.split!r}; set split")
        saved = saved[source.split]
    else:
        _check_undivided(source, f"{path} is a saved data set")
    return _named_classes(saved)


def _read_dataset(source: SourceConfig) -> Iterator[Record]:
    """A data set on the hub; streamed where only its first rows are used."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    datasets.disable_progress_bars()
    try:
        rows: Iterable[Any] = datasets.load_dataset(
            source.path, source.subset, split=source.split, streaming=source.rows is not None
        )
        yield from _named_classes(rows)
    except (OSError, ValueError, DatasetGenerationError, json.JSONDecodeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise DataError(f"cannot read the data {source.path!r} (split {source.split!r}): {reason}") from None
