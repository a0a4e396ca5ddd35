"""Jinja templates over the columns of a row, in jinja2's sandbox: a configuration runs no code."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined, meta, nodes

from minidist.data.sandbox import LONGEST_SOURCE, Sandbox, TooMuchError
from minidist.data.values import as_text, for_template, to_json
from minidist.errors import ConfigError, DataError
from minidist.text import brief, shown

_LONGEST = 50_000_000  # characters of a filled template


class BadRow(DataError):
    """A row that cannot be used, and why. `SourceConfig.bad_rows` says whether it ends the run or is left out."""


class Template:
    """A Jinja template over the columns of a row. `where` is the setting that holds the template, for error messages.

    `guard` changes every value of a column before it is filled in. `given`: names that are filled in though the data has no
    such columns.
    """

    def __init__(self, source: str, where: str, guard: Callable[[str], str] = str, given: frozenset[str] = frozenset()) -> None:
        self._sandbox = _sandbox(self._value)
        try:
            if len(source) > LONGEST_SOURCE:
                raise TooMuchError(f"it has more than {LONGEST_SOURCE:,} characters")
            tree = self._sandbox.parse(source)
            self._template = self._sandbox.from_string(self._sandbox.counted(source))
        except Exception as error:  # noqa: BLE001 - Jinja and Python's compiler raise much
            reason = error.message if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            raise ConfigError(f"{where} is not a valid Jinja template: {reason} in {brief(source)}") from None
        self.columns, self.where, self._source, self._guard = meta.find_undeclared_variables(tree), where, source, guard
        self._given = given
        self.column = _bare_column(tree)
        """The column, where the template is `{{ COLUMN }}` and nothing else."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Template, (self._source, self.where, self._guard, self._given)  # what Jinja compiles crosses no process

    def check(self, columns: list[str], path: str) -> None:
        """Raise DataError unless the data at `path` has every column that the template uses."""
        missing = sorted(self.columns - set(columns) - self._given)
        if missing:
            known = ", ".join(columns)
            raise DataError(f"{path} has no column {missing[0]!r}, which {self.where} uses; its columns are {known}")

    def fill(self, row: Mapping[str, Any]) -> str:
        """The template filled with a row's values; null, and a column that the row lacks, are empty text. Raises BadRow."""
        try:
            text = "".join(self._pieces({name: for_template(row.get(name)) for name in self.columns}))
            text.encode()  # JSON may hold half a character, which no tokenizer takes
        except BadRow:
            raise
        except UnicodeEncodeError:
            raise BadRow(f"{self.where} holds half of a character (a lone surrogate); correct the text") from None
        except Exception as error:  # noqa: BLE001 - a template may raise anything
            reason = shown(f"{type(error).__name__}: {error}")
            raise BadRow(f"{self.where} {brief(self._source)} cannot be filled from it: {reason}") from None
        return text

    def _pieces(self, values: dict[str, Any]) -> Any:
        length = 0
        self._sandbox.begin()
        # A column alone needs no context, which takes Jinja longer to make than a short text to fill in.
        pieces = self._template.generate(values) if self.column is None else [self._value(values[self.column])]
        for piece in pieces:
            length += len(piece)
            if length > _LONGEST:
                raise BadRow(f"{self.where} writes more than {_LONGEST:,} characters")
            yield piece

    def _value(self, value: Any) -> str:
        text = str(value) if isinstance(value, Undefined) else as_text(value)  # the text of an undefined value raises
        if text is None:
            found = {"dict": "a mapping", "list": "a list", "bytes": "bytes"}.get(type(value).__name__, type(value).__name__)
            raise BadRow(
                f"{self.where} {brief(self._source)} writes {found}, and needs text; write {{{{ COLUMN | tojson }}}} for JSON, "
                "or set messages to a column of messages"
            )
        self._sandbox.charge(len(text))
        return self._guard(text)


def _sandbox(value: Callable[[Any], str]) -> Sandbox:
    sandbox = Sandbox(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=value)
    sandbox.filters["tojson"] = to_json
    sandbox.bound_filters()
    return sandbox


def _bare_column(tree: nodes.Template) -> str | None:
    match tree.body:
        case [nodes.Output(nodes=[nodes.Name(name=name)])]:
            return name
    return None
