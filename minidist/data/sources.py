"""Rows of text from a task, a file, a directory or the Hugging Face hub, turned into prompts and training rows.

Rows that cannot be used are refused (the first one named, all counted) or skipped (counted), as the source says.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minidist.config.data import SourceConfig
from minidist.data import tasks
from minidist.data.rendering import Renderer, Template
from minidist.errors import DataError
from minidist.types import Array, Prompt

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}


@dataclass
class BadRows:
    """Rows that cannot be used, and why; `settle` refuses or counts them."""

    source: SourceConfig
    reasons: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: int, reason: str) -> None:
        self.reasons.append((row, reason))

    def settle(self, seen: int) -> None:
        """Raise DataError if the source refuses bad rows, or if no good one is left."""
        if not self.reasons:
            return
        row, reason = self.reasons[0]
        count = f"{len(self.reasons)} of {seen} rows of {self.source.path} cannot be used; the first is row {row}: {reason}"
        if self.source.bad_rows == "refuse":
            raise DataError(f"{count}. Mend them, or leave them out with bad_rows: skip")
        if len(self.reasons) == seen:
            raise DataError(f"{count}. No row is left")


def read_rows(source: SourceConfig) -> list[dict[str, Any]]:
    """All rows of a source as dictionaries, every configured column checked."""
    if source.task is not None:
        rows = tasks.generate(source.task, split=source.split, rows=source.rows or 1000, seed=source.seed)
        _check_columns(source, list(rows[0]))
        return list(rows)
    data = _load_dataset(source)
    if not data.column_names or not len(data):
        raise DataError(f"{source.path} has no rows")
    _check_columns(source, list(data.column_names))
    return data.to_list()


def _check_columns(source: SourceConfig, columns: list[str]) -> None:
    for name in ("prompt", "answer", "text"):
        written = getattr(source, name)
        if written is not None and not (name == "prompt" and source.text is not None):
            Template(written, name).check(columns, source.path)
    if source.references is not None:
        check_column(source.references, columns, source.path, "references")


def check_column(name: str, columns: list[str], path: str, where: str) -> None:
    """Raise DataError unless the column that `where` names is there."""
    if name not in columns:
        raise DataError(f"{path} has no column {name!r}, which {where} names; its columns are {', '.join(columns)}")


def are_texts(value: Any) -> bool:
    """Whether a cell holds a list of texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def read_prompts(
    source: SourceConfig, renderer: Renderer, *, max_prompt_tokens: int, gold: bool = False
) -> tuple[list[Prompt], int]:
    """Prompts of a source, with gold answers where it has them, and the number of rows left out.

    `gold`: the answers are trained on, so they become tokens too, and a row without one cannot be used.
    """
    answer_from = source.answer or ("{{ answer }}" if source.task is not None else None)
    prompt, answer = Template(source.prompt, "prompt"), Template(answer_from, "answer") if answer_from else None
    bad, found, seen = BadRows(source), [], 0
    for index, row in enumerate(read_rows(source)):
        if source.rows is not None and len(found) == source.rows:
            break
        seen += 1
        text = prompt.fill(row)
        tokens = renderer.prompt(text)
        if not text.strip():
            bad.add(index, "the prompt is empty")
        elif len(tokens) > max_prompt_tokens:
            bad.add(index, f"the prompt has {len(tokens)} tokens, more than data.max_prompt_tokens = {max_prompt_tokens}")
        else:
            references = row[source.references] if source.references is not None else []
            if source.references is not None and not are_texts(references):
                bad.add(index, f"its {source.references} is {references!r}, not a list of texts")
                continue
            said = answer.fill(row) if answer else next(iter(references), None)
            if gold and not (said or "").strip():
                bad.add(index, "the answer is empty")
                continue
            found.append(Prompt(index, tokens, text, said, renderer.answer(said or "") if gold else None, tuple(references)))
    bad.settle(seen)
    return found, len(bad.reasons)


@dataclass(frozen=True)
class Example:
    """Token ids to train on: the first `start` are given, the rest are labels."""

    tokens: Array
    start: int

    @classmethod
    def of(cls, prompt: Prompt) -> "Example":
        """A prompt and its gold answer."""
        assert prompt.gold is not None
        return cls(np.concatenate([prompt.tokens, prompt.gold]), len(prompt.tokens))


def read_examples(
    source: SourceConfig, renderer: Renderer, *, max_prompt_tokens: int, max_tokens: int
) -> tuple[list[Example], int]:
    """Training rows of a source, on answers or on plain text, and the number of rows left out."""
    if source.text is not None:
        return _text_examples(source, renderer, max_tokens)
    answer_from = source.answer or "{{ answer }}"
    prompt, answer = Template(source.prompt, "prompt"), Template(answer_from, "answer")
    bad, found, seen = BadRows(source), [], 0
    for index, row in enumerate(read_rows(source)):
        if source.rows is not None and len(found) == source.rows:
            break
        seen += 1
        asked, said = prompt.fill(row), answer.fill(row)
        given, labels = renderer.prompt(asked), renderer.answer(said)
        if not asked.strip() or not said.strip():
            bad.add(index, "the prompt is empty" if not asked.strip() else "the answer is empty")
        elif len(given) > max_prompt_tokens:
            bad.add(index, f"the prompt has {len(given)} tokens, more than data.max_prompt_tokens = {max_prompt_tokens}")
        elif len(given) + len(labels) > max_tokens:
            bad.add(index, f"it has {len(given) + len(labels)} tokens, more than data.max_tokens = {max_tokens}")
        else:
            found.append(Example(np.concatenate([given, labels]), len(given)))
    bad.settle(seen)
    return found, len(bad.reasons)


def _text_examples(source: SourceConfig, renderer: Renderer, max_tokens: int) -> tuple[list[Example], int]:
    """Plain text, each document cut into pieces of at most `max_tokens`; every token but a document's first is a label."""
    template, bad, found = Template(source.text or "", "text"), BadRows(source), []
    seen = used = 0
    for index, row in enumerate(read_rows(source)):
        if source.rows is not None and used == source.rows:
            break
        seen += 1
        text = template.fill(row)
        if text.strip():
            used += 1
            found.extend(Example(piece, 1) for piece in _pieces(renderer.text(text), max_tokens))
        elif source.path.endswith(".txt"):
            continue  # blank lines of a text file separate, they are not rows
        else:
            bad.add(index, "the text is empty")
    bad.settle(seen)
    return found, len(bad.reasons)


def _pieces(tokens: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(tokens) - 1, size - 1):  # one token of overlap: a piece's first token is no label
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
