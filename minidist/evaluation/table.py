"""The figures of several models as one table for people."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show(result: dict[str, Any]) -> None:
    """Print the table to standard output."""
    Console(width=120).print(_table(result))


def _table(result: dict[str, Any]) -> Table:
    """The models line by line, each figure with its standard error."""
    columns = {
        "accuracy": "accuracy",
        "rouge_l": "ROUGE-L",
        "reverse_kl": "reverse KL",
        "forward_kl": "forward KL",
        "length_mean_tokens": "length",
        "truncated_frac": "truncated",
        "repetition_frac": "repeated",
    }
    shown = [name for name in columns if any(name in figures for figures in result.values())]
    caption = "divergences in nats a token, lengths in tokens"
    table = Table("", *(columns[name] for name in shown), box=box.SIMPLE, caption=caption)
    for model, figures in result.items():
        cells = [
            f"{figures[name]:.3f}" + (f" ± {figures[name + '_se']:.3f}" if name + "_se" in figures else "")
            if name in figures
            else "–"
            for name in shown
        ]
        table.add_row(model, *cells)
    return table
