"""Rows of a task, a file, a directory or a data set on the hub, turned into prompts and training rows.

Rows that cannot be used are refused (the error counts them and names the first) or skipped and counted, by `bad_rows`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, TypeVar

from minidist.config.data import SourceConfig
from minidist.data import tasks
from minidist.data.contexts import ContextReader
from minidist.data.conversations import is_conversation
from minidist.data.examples import Example, gold_rollout
from minidist.data.exchanges import Exchange, ExchangeReader, Record
from minidist.data.files import read_source
from minidist.data.progress import counted
from minidist.data.rendering import Renderer
from minidist.data.routes import TeacherColumn
from minidist.data.templates import BadRow, Template
from minidist.errors import DataError
from minidist.types import Array, Prompt

__all__ = ["Example", "check_source", "gold_rollout", "read_examples", "read_prompts", "read_rows", "usable_rows"]

Item = TypeVar("Item")

_PEEKED = 100  # rows whose columns are known before any row is used
_CUTS = 8  # tries until a text that is cut fits: a text cut in a word may have more tokens


def usable_rows(
    source: SourceConfig, rows: Iterable[Record], read: Callable[[int, Record], Item | None]
) -> tuple[list[Item], int]:
    """What `read(index, row)` makes of each row, up to `source.rows` items after `source.skip` of them, and the number of bad
    rows that were left out.

    `read` raises BadRow where the row cannot be used, and returns None for a row that only separates others. Raises DataError
    when `source.bad_rows` refuses bad rows, when all rows are bad, and when none is left after `source.skip`.
    """
    items: list[Item] = []
    bad, first = 0, (0, BadRow())
    last = None if source.rows is None else source.skip + source.rows
    for index, row in enumerate(counted(rows, source.path)):
        try:
            if (item := read(index, row)) is not None:
                items.append(item)
        except BadRow as error:
            first = first if bad else (index, error)
            bad += 1
        if last is not None and len(items) == last:
            break
    if bad:
        index, reason = first
        count = f"{bad} of {len(items) + bad} rows of {source.path} cannot be used; the first is row {index}: {reason}"
        if source.bad_rows == "refuse":
            raise DataError(f"{count}. Correct them, or skip them with bad_rows: skip")
        if not items:
            raise DataError(f"{count}. No usable row is left")
    if source.skip and len(items) <= source.skip:
        raise DataError(f"skip of {source.path} is {source.skip}, and it has {len(items)} usable rows; lower skip")
    return items[source.skip :], bad


def check_prompt_length(prompt: Array, limit: int) -> None:
    """Raise BadRow if a prompt has more than `limit` tokens."""
    if len(prompt) > limit:
        raise BadRow(f"the prompt has {len(prompt)} tokens, more than data.max_prompt_tokens = {limit}")


def read_rows(source: SourceConfig, others: Sequence[Template | TeacherColumn] = ()) -> Iterator[Record]:
    """The rows of a source, one after another, every configured column checked, and those that `others` use."""
    if source.task is not None:
        rows: Iterator[Record] = iter(
            tasks.generate(source.task, split=source.split, rows=source.skip + (source.rows or 1000), seed=source.seed)
        )
    else:
        rows = read_source(source)
    first = list(islice(rows, _PEEKED))
    if not first:
        raise DataError(f"{source.path} has no rows")
    conversations = [name for name, cell in first[0].items() if is_conversation(cell)]
    try:
        _check_columns(source, list(dict.fromkeys(name for row in first for name in row)), others)
    except DataError as error:
        hint = f"; {conversations[0]} holds conversations: set messages: {conversations[0]}" if conversations else ""
        raise DataError(f"{error}{hint}") from None
    return chain(first, rows)


def check_source(source: SourceConfig, others: Sequence[Template | TeacherColumn] = ()) -> None:
    """Raise DataError unless the data can be opened and has every configured column, and those that `others` use. No text
    becomes tokens, and no torch is imported."""
    read_rows(source if source.task is None else source.model_copy(update={"rows": 1, "skip": 0}), others)


def _check_columns(source: SourceConfig, columns: list[str], others: Sequence[Template | TeacherColumn]) -> None:
    for template in others:
        template.check(columns, source.path)
    for name in ("prompt", "answer", "text"):
        written = getattr(source, name)
        if written is not None and not (name == "prompt" and (source.text or source.messages)):
            Template(written, name).check(columns, source.path)
    for where in ("references", "choices", "messages", "tools"):
        name = getattr(source, where, None)
        if isinstance(name, str) and name not in columns:
            raise DataError(f"{source.path} has no column {name!r}, which {where} names; its columns are {', '.join(columns)}")


def is_text_list(cell: Any) -> bool:
    """Whether a cell holds a list of one text or more."""
    return isinstance(cell, list) and bool(cell) and all(isinstance(each, str) for each in cell)


def read_prompts(
    source: SourceConfig,
    renderer: Renderer,
    *,
    max_prompt_tokens: int,
    gold: bool = False,
    context: ContextReader | TeacherColumn | None = None,
    answer_tokens: int = 0,
) -> tuple[list[Prompt], int]:
    """Prompts of a source, with gold answers where the source has them, and the number of rows skipped.

    `gold`: the run trains on the gold answers, so they are tokenized, and a row without one cannot be used. `context`: makes
    the teacher's prompt, which fits the teacher beside `answer_tokens`, or names the teacher; None: one teacher reads the
    student's prompts.
    """
    reader = ExchangeReader(source, renderer.guard)

    def read(index: int, row: Record) -> Prompt:
        exchange = reader.read(row)
        references: Any = [] if source.references is None else row.get(source.references)
        if source.references is not None and not is_text_list(references):
            raise BadRow(f"its {source.references} is {references!r}, not a list of texts")
        if exchange.answer is None:
            exchange = replace(exchange, answer=next(iter(references), None))
        asked, answer = exchange.text, exchange.answer_text
        if gold and not (answer or "").strip():
            raise BadRow("the answer is empty")
        exchange, prompt, gold_tokens = _fitting_prompt(exchange, renderer, max_prompt_tokens, gold=gold)
        found = Prompt(index, prompt, asked, answer, gold_tokens, tuple(references))
        if isinstance(context, TeacherColumn):
            return replace(found, teacher=context.name(row, index, source.path))
        if context is None:
            return found
        tokens, text = context.read(exchange, row, answer_tokens=answer_tokens)
        return replace(found, teacher_tokens=tokens, teacher_text=text)

    return usable_rows(source, read_rows(source, _columns(context)), read)


def _columns(context: ContextReader | TeacherColumn | None) -> Sequence[Template | TeacherColumn]:
    """What asks for columns of its own."""
    if isinstance(context, TeacherColumn):
        return [context]
    return () if context is None else context.templates


def _fitting_prompt(exchange: Exchange, renderer: Renderer, limit: int, *, gold: bool) -> tuple[Exchange, Array, Array | None]:
    """A prompt of at most `limit` tokens, cut where `data.truncate` cuts: the exchange, its tokens, and those of its answer."""
    for _ in range(_CUTS):
        if gold and exchange.answer is not None:
            example = renderer.example(exchange.asking, exchange.answer, exchange.tools)
            prompt, answer = example.tokens[: example.start], example.answer
        else:
            prompt, answer = renderer.prompt(exchange.asking, exchange.tools), None
        if len(prompt) <= limit or renderer.truncate == "refuse":
            break
        exchange = exchange.cut(renderer, len(prompt) - limit, renderer.truncate)
    check_prompt_length(prompt, limit)
    return exchange, prompt, answer


def read_examples(
    source: SourceConfig,
    renderer: Renderer,
    *,
    max_prompt_tokens: int,
    max_tokens: int,
    context: ContextReader | TeacherColumn | None = None,
) -> tuple[list[Example], int]:
    """Training rows of a source, on answers, conversations or plain text, and the number of rows skipped.

    `context`: makes the prompt that the teacher reads before an answer, or names the teacher, of plain text too; None: one
    teacher reads the student's.
    """
    if source.text is not None:
        return _text_examples(source, renderer, max_tokens, context if isinstance(context, TeacherColumn) else None)
    if source.answer is None and source.messages is None:
        source = source.model_copy(update={"answer": "{{ answer }}"})
    reader = ExchangeReader(source, renderer.guard)

    def fitting(exchange: Exchange) -> tuple[Exchange, Example]:
        if exchange.answer is None and not any(message["role"] == "assistant" for message in exchange.messages):
            raise BadRow("the answer is empty")
        if isinstance(exchange.answer, str) and not exchange.answer.strip():
            raise BadRow("the answer is empty")
        if exchange.messages and source.labels == "assistant":
            if isinstance(context, ContextReader) and sum(message["role"] == "assistant" for message in exchange.messages) > 1:
                raise BadRow("teacher.context stands before one answer, and the conversation has several; set labels: last")
            return exchange, _within(renderer.conversation(exchange.messages, exchange.tools), max_tokens, renderer)
        return _fitting_example(exchange, renderer, max_prompt_tokens, max_tokens)

    def read(index: int, row: Record) -> Example:
        exchange, example = fitting(reader.read(row))
        if isinstance(context, TeacherColumn):
            return replace(example, teacher=context.name(row, index, source.path))
        if context is None:
            return example
        tokens, _text = context.read(exchange, row, answer_tokens=len(example.tokens) - example.start)
        return replace(example, teacher_tokens=tokens)

    return usable_rows(source, read_rows(source, _columns(context)), read)


def _fitting_example(exchange: Exchange, renderer: Renderer, prompt_limit: int, limit: int) -> tuple[Exchange, Example]:
    """A prompt with its answer, cut where `data.truncate` cuts, and the exchange that is left."""
    side = renderer.truncate
    for _ in range(_CUTS):
        example = renderer.example(exchange.asking, exchange.answer or "", exchange.tools)
        excess = example.start - prompt_limit
        if side == "left":
            excess = max(excess, example.start + _last_label(example) - limit)
        if excess <= 0 or side == "refuse":
            break
        exchange = exchange.cut(renderer, excess, side)
    check_prompt_length(example.tokens[: example.start], prompt_limit)
    return exchange, _within(example, limit, renderer)


def _last_label(example: Example) -> int:
    """Number of tokens from the first label to the last."""
    labelled = example.labelled
    return len(example.tokens) - example.start if labelled is None else int(labelled.nonzero()[0][-1]) + 1


def _within(example: Example, limit: int, renderer: Renderer) -> Example:
    """The example without the tokens after `limit`: those that are no labels, or, with truncate=right, labels too."""
    end = example.start + _last_label(example)
    if end > limit and not (renderer.truncate == "right" and example.start < limit):
        raise BadRow(f"it has {len(example.tokens)} tokens, more than data.max_tokens = {limit}")
    if end > limit:
        renderer.counts["truncated"] += 1
    if len(example.tokens) <= limit:
        return example
    labelled = example.labelled if example.labelled is None else example.labelled[: limit - example.start]
    return replace(example, tokens=example.tokens[:limit], labelled=labelled)


def _text_examples(
    source: SourceConfig, renderer: Renderer, max_tokens: int, route: TeacherColumn | None
) -> tuple[list[Example], int]:
    """Plain text, each document cut into pieces of at most `max_tokens`; all tokens but the first of a document are labels."""
    template = Template(source.text or "", "text", renderer.guard)
    separates = source.path.endswith((".txt", ".txt.gz", ".txt.xz"))  # blank lines of a text file separate its rows

    def read(index: int, row: Record) -> list[Example] | None:
        text = template.fill(row)
        if not text.strip() and not separates:
            raise BadRow("the text is empty")
        if not text.strip():
            return None
        teacher = "" if route is None else route.name(row, index, source.path)
        return [Example(piece, 1, teacher=teacher) for piece in _pieces(renderer.text(text), max_tokens)]

    documents, skipped = usable_rows(source, read_rows(source, _columns(route)), read)
    return [piece for pieces in documents for piece in pieces], skipped


def _pieces(tokens: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(tokens) - 1, size - 1):  # pieces overlap by one token, since a piece's first is no label
        if len(piece := tokens[start : start + size]) > 1:
            yield piece
