"""Rows of data files, read one after another as the file writes them: a file of which 8 rows are used costs 8 rows."""

import csv
import gzip
import json
import logging
import lzma
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from minidist.config.data import SourceConfig
from minidist.data.values import ClassNumber, read_first_json, read_json
from minidist.errors import DataError
from minidist.storage import fetch, is_address
from minidist.text import shown

log = logging.getLogger("minidist")

Record = dict[str, Any]

_LONGEST_LINE = 1 << 28  # bytes, or characters, of a line or of a value in a JSON list
_HUB_TIMEOUT_S = 10.0
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
        for number, line in enumerate(_bounded(file)):
            yield (line.removeprefix(BOM_UTF8) if number == 0 else line).decode()


def _bounded(file: IO[Any]) -> Iterator[Any]:
    """Lines of a file; one without an end, as of a compressed file made to fill the memory, is refused."""
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"it has a line of more than {_LONGEST_LINE >> 20} MiB")
        yield line


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
        elif len(text) > _LONGEST_LINE:
            raise ValueError(f"it has a value of more than {_LONGEST_LINE >> 20} MiB")
        elif more := file.read(size):
            text, size = (text + more).lstrip(), 2 * size
        else:
            read_first_json(text)  # raises with the reason
            raise ValueError("the list has no closing bracket")


def _separated(path: Path) -> Iterator[Record]:
    """CSV or TSV; every cell is text."""
    csv.field_size_limit(sys.maxsize)
    with _text(path) as file:
        rows = csv.DictReader(_bounded(file), delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
        for row in rows:
            if None in row:
                raise DataError(f"{path}, line {rows.line_num}: the line has more cells than the header")
            yield row


def _plain_text(path: Path) -> Iterator[Record]:
    return ({"text": line.rstrip("\r\n")} for line in _lines(path))


def _parquet(path: Path) -> Iterator[Record]:
    from pyarrow import parquet

    damaged = f"{path} cannot be read as Parquet"
    with _readable(damaged):
        file = parquet.ParquetFile(path)
        names = _class_names(file.schema_arrow.metadata)
    yield from _with_classes(_guarded(damaged, _checked(file.iter_batches(batch_size=256))), names)


def _checked(batches: Iterable[Any]) -> Iterator[Record]:
    """The rows of Arrow batches, each of which is checked before a value of it is looked at."""
    for batch in batches:
        batch.validate(full=True)
        yield from batch.to_pylist()


@contextmanager
def _readable(sentence: str) -> Iterator[None]:
    """Raise an error of a library as a DataError: files that others wrote bring pyarrow and `datasets` to raise any."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001
        raise DataError(f"{sentence}: {shown(str(error.__cause__ or error) or type(error).__name__)}") from None


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
    """Rows of `datasets.save_to_disk`. The files are read here, since `datasets` maps them into memory unseen: where one is cut
    or changed, the process dies."""
    damaged = f"{path} cannot be read as a saved data set"
    with _readable(damaged):
        if (path / "dataset_dict.json").is_file():
            splits = [str(name) for name in json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]]
            if source.split not in splits:
                raise DataError(f"{path} has the splits {', '.join(splits)}, not {source.split!r}; set split")
            path = path / source.split
        else:
            _check_undivided(source, f"{path} is a saved data set")
        state = json.loads((path / "state.json").read_text("utf-8"))
        files = [path / Path(entry["filename"]).name for entry in state["_data_files"]]
        if state.get("_indices_files") or not all(file.is_file() for file in files):
            raise DataError(f"{damaged}: a file that state.json lists is missing, or an index is set; save the data set again")
    return _guarded(damaged, (row for file in files for row in _arrow_rows(file)))


def _arrow_rows(file: Path) -> Iterator[Record]:
    """Rows of an Arrow stream, each batch of which is checked before a value of it is looked at."""
    import pyarrow

    with pyarrow.OSFile(str(file)) as opened, pyarrow.ipc.open_stream(opened) as stream:
        names = _class_names(stream.schema.metadata)
        yield from _with_classes(_checked(stream), names)


def _guarded(sentence: str, rows: Iterator[Record]) -> Iterator[Record]:
    """The rows, of a library whose errors are refused with this sentence."""
    while True:
        with _readable(sentence):
            row = next(rows, None)
        if row is None:
            return
        yield row


def _await_hub(name: str) -> None:
    """Ask the hub for a data set once, for seconds: `datasets` asks for a minute before it looks at what is on this machine."""
    from datasets import config
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_S)
    except (OfflineModeIsEnabled, HfHubHTTPError, HFValidationError):
        pass  # said by load_dataset, and at once
    except Exception as error:  # noqa: BLE001 - those of the HTTP client that the hub's library happens to use
        found = shown(f"{type(error).__name__} {error}", 150)
        log.warning("the hub does not answer (%s): only what is on this machine is read", found)
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True


def _read_dataset(source: SourceConfig) -> Iterator[Record]:
    """A data set on the hub; streamed where only its first rows are used."""
    import datasets

    datasets.disable_progress_bars()
    _await_hub(source.path)
    sentence = f"cannot read the data {source.path!r} (split {source.split!r})"
    with _readable(sentence):
        rows: Iterable[Any] = datasets.load_dataset(
            source.path, source.subset, split=source.split, streaming=source.rows is not None
        )
    yield from _guarded(sentence, _named_classes(rows))
