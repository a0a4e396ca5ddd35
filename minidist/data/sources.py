"""Rows of text from a task, a file, a directory or the Hugging Face hub, turned into prompts and training rows.

Rows that cannot be used are refused (the error counts them and names the first) or skipped and counted, by `bad_rows`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minidist.config.data import SourceConfig
from minidist.data import tasks
from minidist.data.rendering import Renderer, Template
from minidist.errors import DataError
from minidist.types import Array, Prompt, Rollout, Writer

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}


Item = TypeVar("Item")


def usable_rows(
    source: SourceConfig, rows: Iterable[dict[str, Any]], read: Callable[[int, dict[str, Any]], Item | str | None]
) -> tuple[list[Item], int]:
    """What `read(index, row)` makes of each row, up to `source.rows` items, and the number of bad rows that were skipped.

    `read` returns an item, or the reason why the row cannot be used, or None for a row that only separates others. Raises
    DataError when `source.bad_rows` refuses bad rows, and when all rows are bad.
    """
    items: list[Item] = []
    reasons: list[tuple[int, str]] = []
    for index, row in enumerate(rows):
        if source.rows is not None and len(items) == source.rows:
            break
        item = read(index, row)
        if isinstance(item, str):
            reasons.append((index, item))
        elif item is not None:
            items.append(item)
    if reasons:
        index, reason = reasons[0]
        seen = len(items) + len(reasons)
        count = f"{len(reasons)} of {seen} rows of {source.path} cannot be used; the first is row {index}: {reason}"
        if source.bad_rows == "refuse":
            raise DataError(f"{count}. Correct them, or skip them with bad_rows: skip")
        if not items:
            raise DataError(f"{count}. No usable row is left")
    return items, len(reasons)


def too_long(prompt: Array, limit: int) -> str | None:
    """The reason why a row with this prompt cannot be used, if the prompt has more than `limit` tokens."""
    if len(prompt) <= limit:
        return None
    return f"the prompt has {len(prompt)} tokens, more than data.max_prompt_tokens = {limit}"


def read_rows(source: SourceConfig) -> list[dict[str, Any]]:
    """All rows of a source as dictionaries, every configured column checked."""
    if source.task is not None:
        rows = tasks.generate(source.task, split=source.split, rows=source.rows or 1000, seed=source.seed)
        _check_columns(source, list(rows[0]))
        return list(rows)
    return _open(source).to_list()


def check_source(source: SourceConfig) -> None:
    """Raise DataError unless the data can be opened and has every configured column. No text becomes tokens, and no torch is
    imported."""
    if source.task is None:
        _open(source)
    else:
        _check_columns(source, list(tasks.generate(source.task, split=source.split, rows=1, seed=source.seed)[0]))


def _open(source: SourceConfig) -> Any:
    """The data set of a source that is not a task, every configured column checked."""
    data = _load_dataset(source)
    if not data.column_names or not len(data):
        raise DataError(f"{source.path} has no rows")
    _check_columns(source, list(data.column_names))
    return data


def _check_columns(source: SourceConfig, columns: list[str]) -> None:
    for name in ("prompt", "answer", "text"):
        written = getattr(source, name)
        if written is not None and not (name == "prompt" and source.text is not None):
            Template(written, name).check(columns, source.path)
    for where in ("references", "choices"):
        name = getattr(source, where, None)
        if isinstance(name, str) and name not in columns:
            raise DataError(f"{source.path} has no column {name!r}, which {where} names; its columns are {', '.join(columns)}")


def is_text_list(cell: Any) -> bool:
    """Whether a cell holds a list of one text or more."""
    return isinstance(cell, list) and bool(cell) and all(isinstance(each, str) for each in cell)


def read_prompts(
    source: SourceConfig, renderer: Renderer, *, max_prompt_tokens: int, gold: bool = False
) -> tuple[list[Prompt], int]:
    """Prompts of a source, with gold answers where the source has them, and the number of rows skipped.

    `gold`: the run trains on the gold answers, so they are tokenized, and a row without one cannot be used.
    """
    answer_from = source.answer or ("{{ answer }}" if source.task is not None else None)
    prompt, answer = Template(source.prompt, "prompt"), Template(answer_from, "answer") if answer_from else None

    def read(index: int, row: dict[str, Any]) -> Prompt | str:
        text = prompt.fill(row)
        tokens = renderer.prompt(text)
        if not text.strip():
            return "the prompt is empty"
        if reason := too_long(tokens, max_prompt_tokens):
            return reason
        references = row[source.references] if source.references is not None else []
        if source.references is not None and not is_text_list(references):
            return f"its {source.references} is {references!r}, not a list of texts"
        gold_text = answer.fill(row) if answer else next(iter(references), None)
        if gold and not (gold_text or "").strip():
            return "the answer is empty"
        gold_tokens = renderer.answer(gold_text or "") if gold else None
        return Prompt(index, tokens, text, gold_text, gold_tokens, tuple(references))

    return usable_rows(source, read_rows(source), read)


@dataclass(frozen=True)
class Example:
    """Given text to train on: the first `start` of `tokens` are the prompt, the rest are labels."""

    tokens: Array
    start: int

    def as_rollout(self) -> Rollout:
        """The example as a rollout that nobody sampled, for `collate` and for a teacher to score."""
        prompt = Prompt(0, self.tokens[: self.start], "")
        return Rollout.written(prompt, self.tokens[self.start :], None, version=-1, stopped=True, writer=Writer.DATASET)


def gold_rollout(prompt: Prompt, max_new_tokens: int | None = None) -> Rollout:
    """The gold answer of a prompt as a rollout that nobody sampled, cut at `max_new_tokens`; None: the whole answer."""
    assert prompt.gold is not None, "the prompt was read with gold=True"
    tokens, stopped = prompt.gold[:max_new_tokens], max_new_tokens is None or len(prompt.gold) <= max_new_tokens
    text = prompt.answer or ""
    return Rollout.written(prompt, tokens, None, version=-1, stopped=stopped, text=text, writer=Writer.DATASET)


def read_examples(
    source: SourceConfig, renderer: Renderer, *, max_prompt_tokens: int, max_tokens: int
) -> tuple[list[Example], int]:
    """Training rows of a source, on answers or on plain text, and the number of rows skipped."""
    if source.text is not None:
        return _text_examples(source, renderer, max_tokens)
    prompt, answer = Template(source.prompt, "prompt"), Template(source.answer or "{{ answer }}", "answer")

    def read(_: int, row: dict[str, Any]) -> Example | str:
        prompt_text, answer_text = prompt.fill(row), answer.fill(row)
        prompt_P, answer_T = renderer.prompt(prompt_text), renderer.answer(answer_text)
        if not prompt_text.strip() or not answer_text.strip():
            return "the answer is empty" if prompt_text.strip() else "the prompt is empty"
        if reason := too_long(prompt_P, max_prompt_tokens):
            return reason
        if (length := len(prompt_P) + len(answer_T)) > max_tokens:
            return f"it has {length} tokens, more than data.max_tokens = {max_tokens}"
        return Example(np.concatenate([prompt_P, answer_T]), len(prompt_P))

    return usable_rows(source, read_rows(source), read)


def _text_examples(source: SourceConfig, renderer: Renderer, max_tokens: int) -> tuple[list[Example], int]:
    """Plain text, each document cut into pieces of at most `max_tokens`; all tokens but the first of a document are labels."""
    template = Template(source.text or "", "text")
    empty = None if source.path.endswith(".txt") else "the text is empty"  # blank lines of a text file separate its rows

    def read(_: int, row: dict[str, Any]) -> list[Example] | str | None:
        text = template.fill(row)
        return [Example(piece, 1) for piece in _pieces(renderer.text(text), max_tokens)] if text.strip() else empty

    documents, skipped = usable_rows(source, read_rows(source), read)
    return [piece for pieces in documents for piece in pieces], skipped


def _pieces(tokens: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(tokens) - 1, size - 1):  # pieces overlap by one token, since a piece's first is no label
        if len(piece := tokens[start : start + size]) > 1:
            yield piece


def _load_dataset(source: SourceConfig) -> Any:
    """Through `datasets`: a local file or directory by its ending, else a name on the hub."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    datasets.disable_progress_bars()
    path = Path(source.path).expanduser()
    try:
        if path.is_file():
            return datasets.load_dataset(_builder(path), data_files=str(path), split="train")
        if path.is_dir():
            return datasets.load_dataset(str(path), split=source.split)
        if source.path.startswith((".", "/", "~")) or source.path.count("/") > 1 or path.suffix in (*_BUILDERS, ".gz"):
            raise DataError(f"no data file or directory at {source.path}")
        return datasets.load_dataset(source.path, split=source.split)
    except StopIteration:
        raise DataError(f"{source.path} has no rows") from None
    except (OSError, ValueError, DatasetGenerationError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise DataError(f"cannot read the data {source.path!r} (split {source.split!r}): {reason}") from None


def _builder(path: Path) -> str:
    endings = [ending for ending in path.suffixes if ending not in (".gz", ".zst", ".xz")]
    if not endings or endings[-1] not in _BUILDERS:
        raise DataError(f"{path} has an unknown ending; expected {', '.join(_BUILDERS)}, compressed with .gz or not")
    return _BUILDERS[endings[-1]]
