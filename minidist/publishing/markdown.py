"""Text from outside in Markdown: names of models and data sets, columns, settings."""

import re

_SIGNS = re.compile(r"([\\`*_{}\[\]<>()#!|~&$:@]|^[+-])")


def plain(text: object, limit: int = 200) -> str:
    """A text on one line, in which no character has a meaning for Markdown or HTML."""
    return _SIGNS.sub(r"\\\1", _one_line(text, limit))


def code(text: object, limit: int = 200) -> str:
    """A text as a span of code, which also stands in a cell of a table."""
    shown = _one_line(text, limit).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    edge = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{edge}{shown}{edge}{fence}"


def block(text: str, language: str) -> str:
    """Lines as a block of code, which no line of them ends."""
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _one_line(text: object, limit: int) -> str:
    visible = "".join(letter if letter.isprintable() else " " for letter in str(text))
    shown = " ".join(visible.split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
