"""Several teachers before a run: what each of them reads, and whose errors are whose."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from minidist.config import DistillConfig
from minidist.config.data import SourceConfig
from minidist.config.sentence import of_teacher
from minidist.data.examples import Example
from minidist.data.routes import TeacherColumn
from minidist.data.sources import check_source
from minidist.errors import ModelError, UserError
from minidist.preflight.checks import check_context
from minidist.preflight.facts import ModelFacts, PairFacts, read_model
from minidist.preflight.vocabulary import common
from minidist.types import Prompt, Vocabulary


@contextmanager
def about(key: str) -> Iterator[None]:
    """Errors that are about the section `teacher` are about the section `key` of one of several teachers, and say so."""
    try:
        yield
    except UserError as error:
        raise type(error)(of_teacher(str(error), key)) from error.__cause__


def teacher_column(config: DistillConfig) -> TeacherColumn | None:
    """Reads which teacher a row is for; None where it is for one, or for all of them."""
    routing = config.routing
    if routing is None or routing.column is None:
        return None
    return TeacherColumn(routing.column, tuple(config.teachers), routing.default)


def check_columns(column: TeacherColumn | None, sources: Iterable[SourceConfig | None]) -> None:
    """The rows have the column that names their teacher."""
    for source in filter(None, sources):
        if column is not None:
            check_source(source, [column])


def read_pairs(config: DistillConfig, student: ModelFacts) -> dict[str, PairFacts]:
    """The student with each teacher, by the key of the teacher. The softmax of all models is over the ids that all have."""
    found = {key: PairFacts(student, read_model(each, f"{key}.model")) for key, each in config.named_teachers.items()}
    if not config.teachers:
        return found
    shared = common(_vocabulary(key, pair) for key, pair in found.items())
    return {key: replace(pair, shared=shared) for key, pair in found.items()}


def _vocabulary(key: str, pair: PairFacts) -> Vocabulary:
    """The ids that the student and one of several teachers share."""
    try:
        return pair.vocabulary
    except ModelError as error:
        raise ModelError(f"{key}: {error}") from None


def rows_by_teacher(config: DistillConfig, rows: Iterable[Prompt | Example]) -> dict[str, list[Prompt | Example]]:
    """The rows that each teacher reads, by its key: its own, or all of them."""
    read = list(rows)
    if config.routing is None or config.routing.column is None:
        return dict.fromkeys(config.named_teachers, read)
    return {f"teachers.{name}": [row for row in read if row.teacher == name] for name in config.teachers}


def longest_rows(rows: Mapping[str, Sequence[Prompt | Example]], answer_tokens: int) -> dict[str, int]:
    """Most tokens of a row of each teacher, with an answer of `answer_tokens` after a prompt; 0 without rows."""

    def length(row: Prompt | Example) -> int:
        return len(row.tokens) + (0 if isinstance(row, Example) else answer_tokens)

    return {key: max(map(length, found), default=0) for key, found in rows.items()}


def check_contexts(pairs: Mapping[str, PairFacts], longest: Mapping[str, int]) -> None:
    """The rows of each teacher, with their answers, fit its context, however long those of the others are."""
    for key, pair in pairs.items():
        with about(key):
            check_context(pair.teacher.context, longest[key], f"the longest row of {key}, with its answer,")


def routing_lines(config: DistillConfig, rows: Mapping[str, Sequence[Prompt | Example]]) -> list[str]:
    """How the rows are divided; none with one teacher."""
    if config.routing is None:
        return []
    if config.routing.weights is not None:
        shares = " + ".join(f"{weight:g} {name}" for name, weight in config.routing.shares.items())
        return [f"the teacher of every row is the mixture {shares} of distributions (routing.weights)"]
    counts = ", ".join(f"{len(found):,} {key.removeprefix('teachers.')}" for key, found in rows.items())
    unused = [f"WARNING no row is for {key} (routing.column)" for key, found in rows.items() if not found]
    return [f"rows by teacher (routing.column {config.routing.column}): {counts}", *unused]
