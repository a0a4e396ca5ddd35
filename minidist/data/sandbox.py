"""jinja2's sandbox with an end: what a template computes is counted before it is computed, and one that would fill the memory,
or take minutes, is stopped.

Templates come from configurations, data sets and models. jinja2 keeps them from running code; it lets them loop, multiply texts
and nest lists as they like.
"""

import re
from collections.abc import Callable, Iterable
from functools import wraps
from types import GeneratorType
from typing import Any

from jinja2 import Environment, nodes
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LONGEST_SOURCE = 200_000
"""Characters of a template."""
_MOST_WORK = 100_000_000  # characters that a template makes and reads, all together
_LONGEST_NUMBER = 2000  # bytes of a whole number; Python writes none of more than 4,300 digits
_STEP = 400  # work of a pass through a loop, or of a call
_ENTRY = 100  # work of an entry of a list or a mapping
_TEXTS = str | bytes
_WIDTH = re.compile(r"\d+")
_OF_JINJA = (Context, EvalContext, Environment)
"""What filters are given beside their values."""
# Filters that read a text by a regular expression, or letter by letter.
_SLOW_FILTERS = {"list", "striptags", "title", "unique", "urlize", "wordcount", "wordwrap"}


class TooMuchError(Exception):
    """A template computes more than any text needs."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Runs no code, and counts the work of the template that it fills in. `begin` starts the count."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._work = 0
        self._step_work = _STEP
        del self.globals["lipsum"]
        self.bound_filters()

    def bound_filters(self) -> None:
        """Count the work of all filters and tests; once more where some have been added."""
        self.filters = {name: self._bounded(name, filter) for name, filter in self.filters.items()}
        self.tests = {name: self._bounded(name, test) for name, test in self.tests.items()}

    def counted(self, source: str) -> nodes.Template:
        """The template with calls that count the work of loops, lists, comparisons and joined texts."""
        self._step_work = _STEP + len(source) // 10
        return _counting(self.parse(source))

    def begin(self) -> None:
        self._work = 0

    def charge(self, amount: int) -> None:
        """Raise TooMuchError where the work since `begin` passes the limit."""
        self._work += amount
        if self._work > _MOST_WORK:
            raise TooMuchError(f"it computes more than any text needs ({_MOST_WORK:,} characters)")

    def step(self) -> bool:
        """A pass through a loop, or a call of a macro. True, for the filter of a loop."""
        self.charge(self._step_work)
        return True

    def read(self, value: Any) -> Any:
        """The value, which is read from its beginning to its end."""
        self.charge(_length(value))
        return value

    def made(self, value: Any) -> Any:
        """The value, made of others: all that it holds counts."""
        self.charge(self.size(value))
        return value

    def joined(self, *parts: Any) -> str:
        """The texts of the parts, as `~` joins them."""
        texts = [str(self.made(part)) for part in parts]
        self.charge(sum(map(len, texts)))
        return "".join(texts)

    def size(self, value: Any) -> int:
        """Work to write a value out, with all that it holds, each time that it holds it."""
        if isinstance(value, str | int | float) or value is None:
            return _length(value)
        total, stack = 0, [value]
        while stack:
            each = stack.pop()
            if isinstance(each, dict):
                stack += [*each.keys(), *each.values()]
            elif isinstance(each, list | tuple | set | frozenset):
                stack += each
            elif isinstance(each, Namespace):
                stack.append(object.__getattribute__(each, "_Namespace__attrs"))
            else:
                total += _length(each)
                continue
            total += _ENTRY
            if total + _ENTRY * len(stack) > _MOST_WORK:
                raise TooMuchError(f"it makes a value of more than {_MOST_WORK:,} characters")
        return total

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator, its result counted before it is made."""
        sizes, times = [_length(each) for each in (left, right)], [_number(each) for each in (left, right)]
        whole = isinstance(left, int) and isinstance(right, int)
        if whole and (sizes[0] * times[1] if operator == "**" else sum(sizes)) > _LONGEST_NUMBER:
            raise TooMuchError(f"it computes a whole number of more than {_LONGEST_NUMBER:,} bytes")
        if operator == "*":
            repeated = [isinstance(each, _TEXTS | list | tuple) for each in (left, right)]
            self.charge(sizes[0] * times[1] if repeated[0] else sizes[1] * times[0] if repeated[1] else sum(sizes))
        elif operator == "%" and isinstance(left, _TEXTS):
            self.charge(self._formatted(left, [right]))
        else:
            self.charge(sum(sizes))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a function or of a method, its work counted before it is done."""
        if getattr(__obj, "__self__", None) is __self:  # one of those that count
            return __obj(*args)
        inner = getattr(__obj, "__wrapped__", __obj)
        args = tuple(__self._listed(each) for each in args)
        owner, name, given = getattr(inner, "__self__", None), getattr(inner, "__name__", ""), [*args, *kwargs.values()]
        __self.charge(_STEP if isinstance(__obj, Macro) else _STEP + __self.size(given))
        if isinstance(owner, _TEXTS | int | float):
            __self.charge(__self._result(name, owner, given))
        return __self.read(super().call(__context, __obj, *args, **kwargs))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if getattr(function, "counts_work", False):
            return function

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.charge(_STEP)
            args = tuple(self._listed(each) for each in args)
            first, *others = [each for each in (*args, *kwargs.values()) if not isinstance(each, _OF_JINJA)]
            self.charge(_length(first) * (10 if name in _SLOW_FILTERS else 1))
            self.charge(self._result(name, first, others))
            return self.read(function(*args, **kwargs))

        bounded.counts_work = True  # type: ignore[attr-defined]
        return bounded

    def _listed(self, value: Any) -> Any:
        """The entries of what makes them one by one, each of which counts."""
        if not isinstance(value, GeneratorType | range):
            return value
        entries = []
        for each in value:
            self.charge(_STEP)
            entries.append(each)
        return entries

    def _result(self, name: str, value: Any, given: list[Any]) -> int:
        """An upper bound of the size of what a filter or a method makes of a value."""
        numbers = sum(_number(each) for each in given if isinstance(each, int | float))
        match name:
            case "replace":
                old, new = given[0] if given else "", given[1] if len(given) > 1 else ""
                return _times(value, old) * _length(new) + _length(value) + numbers
            case "join":  # the method of a separator, or the filter of a list
                return sum(self.size(each) for each in (value, *given)) + sum(_length(each) for each in given) * _length(value)
            case "format" | "format_map":
                return self._formatted(value, given)
            case "translate":
                written = (each for table in given if isinstance(table, dict) for each in table.values())
                return _length(value) * max(map(_length, written), default=1)
            case "string" | "tojson" | "pprint" | "xmlattr" | "escape" | "e" | "forceescape" | "urlencode":
                return self.size(value) * (1 + numbers)
            case "round" if numbers > _LONGEST_NUMBER:
                raise TooMuchError(f"it rounds to more than {_LONGEST_NUMBER:,} digits")
            case "sum":
                return self.size(value) * (len(value) if isinstance(value, list) else 1)
            case "indent" | "expandtabs" | "wordwrap":
                lines = value.count("\n") + value.count("\t") + 1 if isinstance(value, str) else 1
                return lines * (numbers + sum(_length(each) for each in given)) + 10 * _length(value)
        return numbers + sum(_length(each) for each in given)

    def _formatted(self, text: Any, given: list[Any]) -> int:
        """An upper bound of the size of a format with its values."""
        written = str(text)
        fields = written.count("%") + written.count("{")
        numbers = sum(_number(each) for each in _flat(given) if isinstance(each, int))
        widths = sum(int(width[:12]) for width in _WIDTH.findall(written))
        return len(written) + widths + fields * (self.size(given) + (numbers if "*" in written or "{" in written else 0))


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for each in values:
        yield from each if isinstance(each, tuple | list) else each.values() if isinstance(each, dict) else [each]


def _times(value: Any, old: Any) -> int:
    """How often a text holds another."""
    if isinstance(value, str) and isinstance(old, str) and old:
        return value.count(old)
    return _length(value) + 1


def _length(value: Any) -> int:
    """Letters, entries or bytes of a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int):
        return 1 + value.bit_length() // 8
    return len(value) if isinstance(value, _TEXTS | list | tuple | dict | set | frozenset) else 1


def _number(value: Any) -> int:
    """The size of a number; of one that is none, or not finite, nothing."""
    if isinstance(value, int):
        return abs(value)
    return int(abs(value)) if isinstance(value, float) and abs(value) < 1e18 else 0


def _counting(tree: nodes.Template) -> nodes.Template:
    """The template with calls of the sandbox's counters, so that it ends.

    A loop with a filter counts what the filter looks at, since entries that it leaves out reach no body.
    """
    for each in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        count = _call("step", each.lineno)
        if isinstance(each, nodes.For) and each.test is not None:
            each.test = nodes.And(count, each.test, lineno=each.lineno)
        else:
            each.body.insert(0, nodes.ExprStmt(count, lineno=each.lineno))
    _Wrapper().visit(tree)
    return tree


def _call(name: str, line: int, *arguments: Any) -> nodes.Call:
    """A call of a method of the environment, which no name of a template can hide."""
    return nodes.Call(nodes.EnvironmentAttribute(name, lineno=line), list(arguments), [], None, None, lineno=line)


_MADE = (nodes.Name, nodes.Call, nodes.Filter, nodes.Getattr, nodes.Getitem, nodes.BinExpr, nodes.Concat)


class _Wrapper:
    """Puts counters around what a template makes without a call: lists, slices, joined and compared texts."""

    def visit(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Compare) and _with_constant(node):  # as long as the constant, whatever the other side is
            for each in (node, *node.ops):
                self.visit(each.expr)
                each.expr = self._wrapped(None, each.expr)
            return
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                self.visit(value)
                setattr(node, field, self._wrapped(node, value))
            elif isinstance(value, list):
                for each in value:
                    if isinstance(each, nodes.Node):
                        self.visit(each)
                setattr(node, field, [self._wrapped(node, each) if isinstance(each, nodes.Node) else each for each in value])

    def _wrapped(self, parent: nodes.Node | None, node: nodes.Node) -> Any:
        if isinstance(node, nodes.Concat):
            return _call("joined", node.lineno, *node.nodes)
        if isinstance(node, nodes.List | nodes.Dict | nodes.Tuple):
            stored = isinstance(node, nodes.Tuple) and node.ctx != "load"
            return node if stored or not any(node.find(kind) for kind in _MADE) else _call("made", node.lineno, node)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return _call("read", node.lineno, node)
        compared = isinstance(parent, nodes.Operand | nodes.Compare) and isinstance(node, nodes.Expr)
        return _call("read", node.lineno, node) if compared and not isinstance(node, nodes.Const | nodes.Operand) else node


def _with_constant(node: nodes.Compare) -> bool:
    """Whether a comparison asks for the equality of a value and a constant."""
    sides = (node.expr, *(each.expr for each in node.ops))
    return all(each.op in ("eq", "ne") for each in node.ops) and any(isinstance(each, nodes.Const) for each in sides)
