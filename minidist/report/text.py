"""Text of files as HTML that shows it and does nothing else, numbers for people, and tables."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from minidist.text import readable


def shown(value: object) -> str:
    """Text of a file as HTML: escaped, and without control characters and what turns its writing. The one way into the page.

    >>> shown("<b>&")
    '&lt;b&gt;&amp;'
    """
    return html.escape(readable(str(value)))


def brief(value: object, most: int = 300) -> str:
    """`shown`, of the beginning of a long text.

    >>> brief("abcdef", 4)
    'abc…'
    """
    text = str(value)
    return shown(text if len(text) <= most else text[: most - 1] + "…")


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits.

    >>> [number(value) for value in (0.12345, 1234567.0, 2e-7, float("nan"), None)]
    ['0.1234', '1,234,567', '2.000e-07', 'NaN', '–']
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e9):
        return f"{value:.{digits - 1}e}"
    if size >= 10**digits or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"


def seconds(value: float) -> str:
    """A duration.

    >>> [seconds(value) for value in (3.21, 75, 7322, 200000)]
    ['3.2 s', '1 min 15 s', '2 h 2 min', '2 d 7 h']
    """
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    for unit, part, size, below in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // below} {part}"
    return f"{value:.1f} s"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, kind: str = "") -> str:
    """An HTML table of texts of files; its first column names the rows. `kind`: its CSS class."""
    top = "".join(f'<th scope="col">{shown(cell)}</th>' for cell in head)
    return _table(top, "".join(_row([shown(cell) for cell in row]) for row in rows), kind)


def table_of_html(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """The same of cells that are HTML."""
    return _table("".join(f'<th scope="col">{cell}</th>' for cell in head), "".join(map(_row, rows)), kind)


def _row(cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{cells[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>"


def _table(head: str, body: str, kind: str) -> str:
    opening = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="wide">{opening}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def from_rich(made: Table) -> str:
    """A table that is made for a terminal, as HTML."""
    rows = zip(*(column.cells for column in made.columns), strict=True)
    title = f"<h3>{shown(made.title)}</h3>" if made.title else ""
    return title + table([column.header for column in made.columns], rows, kind="numbers")


def from_markdown(text: str) -> str:
    """The tables and the paragraphs of a page that a stage has written."""
    found: list[str] = []
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            rows += [] if set("".join(cells)) <= set("-:") and any(cells) else [cells]
            continue
        if rows:
            found.append(table(rows[0], rows[1:], kind="numbers"))
            rows = []
        if line.strip():
            found.append(_line(line.strip()))
    return "\n".join(found)


def _line(line: str) -> str:
    if line.startswith("#"):
        return f"<h3>{shown(line.lstrip('# '))}</h3>"
    return f'<p class="note">{shown(line)}</p>'


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names with their values, those that are not known left out."""
    known = "".join(
        f"<div><dt>{shown(name)}</dt><dd>{shown(value)}</dd></div>" for name, value in pairs if value not in (None, "")
    )
    return f'<dl class="facts">{known}</dl>' if known else ""
