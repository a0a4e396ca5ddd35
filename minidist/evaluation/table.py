"""The figures of several models as one table for people."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show(result: dict[str, Any]) -> None:
    """Print the table to standard output."""
    Console(width=160).print(_table(result))


_COLUMNS = {
    "accuracy": "accuracy",
    "rouge_l": "ROUGE-L",
    "reverse_kl": "reverse KL",
    "forward_kl": "forward KL",
    "exposure_bias": "exposure bias",
    "length_mean_tokens": "length",
    "truncated_frac": "truncated",
    "repetition_frac": "repeated",
    "distinct_4": "distinct-4",
    "seconds": "seconds",
}


def _table(result: dict[str, Any]) -> Table:
    """The models line by line, each figure with its standard deviation over seeds, where there are several, or its standard
    error."""
    named = dict.fromkeys(name for figures in result.values() for name in figures)
    asked = [name.removesuffix("_ece") for name in named if name.endswith("_ece")]
    columns = {name: text for name, text in _COLUMNS.items() if name in named}
    columns |= {f"{name}_{figure}": f"{name} {text}" for name in asked for figure, text in _ASKED.items()}
    seeds = any(name.endswith("_sd") for name in named)
    spread = "standard deviation over seeds (of questions the standard error)" if seeds else "standard error"
    caption = f"divergences in nats a token, lengths in tokens, exposure bias in percent; ± {spread}"
    table = Table("", *columns.values(), box=box.SIMPLE, caption=caption)
    for model, figures in result.items():
        table.add_row(model, *(_cell(figures, name) for name in columns))
    return table


def markdown(result: dict[str, Any]) -> str:
    """The same as a Markdown table, its caption below."""
    table = _table(result)
    rows = [[str(column.header) for column in table.columns], ["---"] * len(table.columns)]
    rows += [list(row) for row in zip(*(map(str, column.cells) for column in table.columns), strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + f"\n{table.caption}\n"


_ASKED = {"accuracy": "accuracy", "ece": "ECE"}


def _cell(figures: dict[str, Any], name: str) -> str:
    if figures.get(name) is None:
        return "–"
    error = figures.get(f"{name}_sd", figures.get(f"{name}_se"))
    digits = 1 if name in ("exposure_bias", "seconds") else 3
    return f"{figures[name]:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
