"""Values of a row as the file writes them: numbers keep their digits, true and null their names."""

import json
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, NoReturn


class Number(float):
    """A number of a JSON file, with the digits that the file has.

    >>> Number("1.50"), str(Number("1.50")), Number("1.50") + 1
    (1.50, '1.50', 2.5)
    """

    _digits: str

    def __new__(cls, digits: str) -> "Number":
        number = super().__new__(cls, digits)
        number._digits = digits
        return number

    def __str__(self) -> str:
        return self._digits

    __repr__ = __str__


class ClassNumber(int):
    """The number of a class, of a data set that also has the classes' names.

    >>> ClassNumber(1, ("no", "yes")).name, ClassNumber(-1, ("no", "yes")).name, str(ClassNumber(1, ("no", "yes")))
    ('yes', None, '1')
    """

    names: tuple[str, ...]

    def __new__(cls, number: int, names: tuple[str, ...]) -> "ClassNumber":
        made = super().__new__(cls, number)
        made.names = names
        return made

    def __getnewargs__(self) -> tuple[int, tuple[str, ...]]:  # type: ignore[override]  # so that it crosses processes
        return int(self), self.names

    @property
    def name(self) -> str | None:
        """The name of the class; None of a row without a class."""
        return self.names[self] if 0 <= self < len(self.names) else None


class Null(str):
    """null in a template: the empty text, which filters read as text, and null in JSON."""


def for_template(value: Any) -> Any:
    """A value of a row as a template reads it."""
    if isinstance(value, dict):
        return {key: for_template(each) for key, each in value.items()}
    if isinstance(value, list):
        return [for_template(each) for each in value]
    return Null() if value is None else value


def read_json(text: str) -> Any:
    """A JSON value whose numbers keep their digits. Raises ValueError (also RecursionError) where `text` is no JSON."""
    return _DECODER.decode(text)


def read_first_json(text: str) -> tuple[Any, int]:
    """The JSON value at the beginning of a text, and its length. Raises ValueError where there is none, or only a part of one.

    >>> read_first_json('{"a": 1.50}, {')
    ({'a': 1.50}, 11)
    """
    return _DECODER.raw_decode(text)


def _integer(digits: str) -> int | Number:
    # Python reads at most 4,300 digits, and drops the sign of -0.
    return int(digits) if len(digits) < 4000 and digits != "-0" else Number(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_float=Number, parse_int=_integer, parse_constant=_refuse_constant)


def as_text(value: Any) -> str | None:
    """The text of a single value as the file writes it; null is the empty text. None for a list, a mapping or bytes.

    >>> as_text("007"), as_text(True), as_text(Number("1.50")), as_text(None), as_text([1])
    ('007', 'true', '1.50', '', None)
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date | time):  # of Parquet and Arrow: JSON and CSV have dates as text
        return value.isoformat(" ") if isinstance(value, datetime) else value.isoformat()
    return str(value) if isinstance(value, int | float | Decimal) else None


def to_json(value: Any, indent: int | None = None, depth: int = 0) -> str:
    """A value as JSON text, with the digits and the characters that it has in the file.

    >>> to_json({"a": [Number("1.50"), None, True, "é"]})
    '{"a": [1.50, null, true, "é"]}'
    """
    if isinstance(value, Number | Null):
        return str(value) or "null"
    if isinstance(value, dict):
        ends, parts = "{}", [f"{to_json(str(key))}: {to_json(each, indent, depth + 1)}" for key, each in value.items()]
    elif isinstance(value, list | tuple):
        ends, parts = "[]", [to_json(each, indent, depth + 1) for each in value]
    else:
        plain = value is None or isinstance(value, bool | int | float | str)
        return json.dumps(value if plain else as_text(value), ensure_ascii=False)
    if indent is None or not parts:
        return ends[0] + ", ".join(parts) + ends[1]
    margin = "\n" + " " * indent * depth
    inner = margin + " " * indent
    return ends[0] + inner + f",{inner}".join(parts) + margin + ends[1]
