"""Jinja templates over the columns of a row, in jinja2's sandbox: a configuration runs no code."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minidist.data.values import as_text, for_template, to_json
from minidist.errors import ConfigError, DataError

_LONGEST = 50_000_000  # characters of a filled template
_COUNTER = "_count_a_step"
_STEPS = 1_000_000  # passes through the loops of a template and calls of its macros, all together


class BadRow(DataError):
    """A row that cannot be used, and why. `SourceConfig.bad_rows` says whether it ends the run or is left out."""


class Template:
    """A Jinja template over the columns of a row. `where` is the setting that holds the template, for error messages.

    `guard` changes every value of a column before it is filled in. `given`: names that are filled in though the data has no
    such columns.
    """

    def __init__(self, source: str, where: str, guard: Callable[[str], str] = str, given: frozenset[str] = frozenset()) -> None:
        environment = _environment(self._value)
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(_counting(environment.parse(source)), globals={_COUNTER: self._step})
        except TemplateSyntaxError as error:
            raise ConfigError(f"{where} is not a valid Jinja template: {error.message} in {source!r}") from None
        self.columns, self.where, self._source, self._guard = meta.find_undeclared_variables(tree), where, source, guard
        self._steps = 0
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
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise BadRow(f"{self.where} {self._source!r} cannot be filled from it: {reason}") from None
        return text

    def _pieces(self, values: dict[str, Any]) -> Any:
        length = self._steps = 0
        # A column alone needs no context, which takes Jinja longer to make than a short text to fill in.
        pieces = self._template.generate(values) if self.column is None else [self._value(values[self.column])]
        for piece in pieces:
            length += len(piece)
            if length > _LONGEST:
                raise BadRow(f"{self.where} writes more than {_LONGEST:,} characters")
            yield piece

    def _step(self) -> bool:
        """Count a pass through a loop, or a call of a macro. True, for the filter of a loop. Raises BadRow."""
        self._steps += 1
        if self._steps > _STEPS:
            raise BadRow(f"{self.where} takes more than {_STEPS:,} steps in its loops and macros")
        return True

    def _value(self, value: Any) -> str:
        text = str(value) if isinstance(value, Undefined) else as_text(value)  # the text of an undefined value raises
        if text is None:
            found = {"dict": "a mapping", "list": "a list", "bytes": "bytes"}.get(type(value).__name__, type(value).__name__)
            raise BadRow(
                f"{self.where} {self._source!r} writes {found}, and needs text; write {{{{ COLUMN | tojson }}}} for JSON, or "
                "set messages to a column of messages"
            )
        return self._guard(text)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Runs no code, and makes no value so large that a machine stops."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`*` and `**` with a bound on what they make."""
        sizes = [len(each) if isinstance(each, str | list | tuple) else abs(each) for each in (left, right)]
        repeats = operator == "*" and any(isinstance(each, str | list | tuple) for each in (left, right))
        if (repeats and sizes[0] * sizes[1] > _LONGEST) or (operator == "**" and sizes[1] > 1000):
            raise OverflowError(f"{operator} would make a value of more than {_LONGEST:,} parts")
        return super().call_binop(context, operator, left, right)


def _counting(tree: nodes.Template) -> nodes.Template:
    """The template with a call of the counter at each pass through a loop and each call of a macro, so that it ends.

    A loop with a filter counts what the filter looks at, since entries that it leaves out reach no body.
    """
    for each in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        count = nodes.Call(nodes.Name(_COUNTER, "load"), [], [], None, None, lineno=each.lineno)
        if isinstance(each, nodes.For) and each.test is not None:
            each.test = nodes.And(count, each.test, lineno=each.lineno)
        else:
            each.body.insert(0, nodes.ExprStmt(count, lineno=each.lineno))
    return tree


def _environment(value: Callable[[Any], str]) -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=value)
    environment.filters["tojson"] = to_json
    return environment


def _bare_column(tree: nodes.Template) -> str | None:
    match tree.body:
        case [nodes.Output(nodes=[nodes.Name(name=name)])]:
            return name
    return None
