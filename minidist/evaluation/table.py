"""The figures of several models as one table for people."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from minidist.evaluation.figures import Figure, Figures, from_record
from minidist.text import readable

_COLUMNS = {
    "accuracy": "accuracy",
    "accept_frac": "kept",
    "accuracy_kept": "accuracy of the kept",
    "tokens_per_answer": "tokens an answer",
    "tokens_per_sample": "tokens a sample",
    "failed_frac": "failed",
    "rouge_l": "ROUGE-L",
    "reverse_kl": "reverse KL",
    "forward_kl": "forward KL",
    "exposure_bias": "exposure bias",
    "length_mean_tokens": "length",
    "truncated_frac": "truncated",
    "repetition_frac": "repeated",
    "distinct_4": "distinct-4",
    "optimizer_steps": "optimizer steps",
    "loss_tokens": "loss tokens",
    "seconds": "seconds",
}
_DIGITS = {"exposure_bias": 1, "seconds": 1, "optimizer_steps": 0, "loss_tokens": 0}
_UNITS = "divergences in nats a token, lengths in tokens, exposure bias in percent"
_PROGRAM_UNITS = "tokens are all that are generated for an answer, in every call and sample"
_QUESTION_COLUMNS = {"accuracy": "accuracy", "ece": "ECE"}


def show(models: Mapping[str, Figures]) -> None:
    """Print the table to standard output: one row a model."""
    Console(width=160, markup=False).print(_table(models))


def show_result(result: Mapping[str, Any]) -> None:
    """Print the table of models as result.json holds them."""
    show({name: from_record(record) for name, record in result.items()})


def markdown(models: Mapping[str, Figures]) -> str:
    """The same as a Markdown table, with its caption below."""
    table = _table(models)
    rows = [[str(column.header) for column in table.columns], ["---"] * len(table.columns)]
    rows += [list(row) for row in zip(*(map(str, column.cells) for column in table.columns), strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + f"\n{table.caption}\n"


def _table(models: Mapping[str, Figures]) -> Table:
    """One row a model; each figure with its spread over seeds or, where no figure has one, its standard error."""
    measured = dict.fromkeys(name for figures in models.values() for name in figures)
    questions = [name.removesuffix("_ece") for name in measured if name.endswith("_ece")]
    columns = {name: text for name, text in _COLUMNS.items() if name in measured}
    columns |= {f"{name}_{figure}": f"{name} {text}" for name in questions for figure, text in _QUESTION_COLUMNS.items()}
    seeds = any(figure.spread is not None for figures in models.values() for figure in figures.values())
    spread = "standard deviation over seeds (of questions the standard error)" if seeds else "standard error"
    units = _PROGRAM_UNITS if "tokens_per_answer" in columns else _UNITS
    caption = f"{units}; ± {spread}"
    table = Table("", *columns.values(), box=box.SIMPLE, caption=caption)
    for model, figures in models.items():
        table.add_row(readable(model), *(_cell(name, figures.get(name)) for name in columns))
    return table


def _cell(name: str, figure: Figure | None) -> str:
    if figure is None:
        return "–"
    error = figure.error if figure.spread is None else figure.spread
    digits = _DIGITS.get(name, 3)
    return f"{figure.mean:,.{digits}f}" + ("" if error is None else f" ± {error:,.{digits}f}")
