"""The rows of a run as its models will read them, for people: `minidist check --show N`."""

from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.text import Text

from minidist.data.examples import Example
from minidist.data.rendering import Renderer
from minidist.preflight.compare import ComparePlan
from minidist.preflight.lessons import TeachPlan
from minidist.preflight.plan import Plan
from minidist.text import readable

_LABEL, _CONTEXT = Style(color="#000000", bgcolor="#8fd19e"), Style(dim=True)


def show_any(plan: object, count: int, *, ids: bool) -> None:
    """The rows of any plan; a comparison of toys has none."""
    if isinstance(plan, TeachPlan):
        show_labelled(plan, count, ids=ids)
    elif isinstance(plan, Plan | ComparePlan):
        show_rows(plan, count, ids=ids)


def show_rows(plan: Plan | ComparePlan, count: int, *, ids: bool = False, console: Console | None = None) -> None:
    """Print the first `count` rows of each source of a plan, labels coloured; with `ids`, each token with its id."""
    console = console or Console(markup=False, soft_wrap=True)
    colours = console.is_terminal and not console.no_color
    mark = "coloured" if colours else "between ⟦ and ⟧"
    console.print(Text(f"labels, the tokens that are trained on, are {mark}", style="dim"))
    for name, examples in plan.rows().items():
        for number, example in enumerate(examples[:count], start=1):
            sizes = f"{len(example.tokens)} tokens, {example.labels} labels"
            console.print(Text(f"\n[{name} {number}] {sizes}", style="bold"))
            console.print(_text(plan.renderer, example, ids=ids, colours=colours))


def show_labelled(plan: TeachPlan, count: int, *, ids: bool = False, console: Console | None = None) -> None:
    """Print the first `count` rows of each source of a labelled task with their labels; with `ids`, each token with its id."""
    console = console or Console(markup=False, soft_wrap=True)
    for name, rows in plan.labelled().items():
        for number, row in enumerate(rows[:count], start=1):
            console.print(Text(f"\n[{name} {number}] {len(row.tokens)} tokens, label: {plan.label(row)}", style="bold"))
            console.print(Text(_pieces(plan, row.tokens.tolist(), ids=ids)))
            for choice in row.choices:
                console.print(Text(f"  choice: {_pieces(plan, choice.tolist(), ids=ids)}"))


def _pieces(plan: TeachPlan, tokens: list[int], *, ids: bool) -> str:
    pieces = [str(piece) for piece in plan.tokenizer.convert_ids_to_tokens(tokens)]
    return " ".join(f"{piece}[{token}]" if ids else piece for piece, token in zip(pieces, tokens, strict=True))


def _text(renderer: Renderer, example: Example, *, ids: bool, colours: bool) -> Text:
    text, inside = Text(), False
    for token, piece, label in _tokens(renderer, example):
        if label != inside and not colours:
            text.append("⟦" if label else "⟧")
        inside = label
        shown = readable(piece).replace("\n", "↵\n") + (f"[{token}]" if ids else "")
        text.append(shown, style=(_LABEL if label else _CONTEXT) if colours else None)
    return text.append("⟧") if inside and not colours else text


def _tokens(renderer: Renderer, example: Example) -> Iterator[tuple[int, str, bool]]:
    """Each token's id and text, and whether it is a label."""
    labelled = np.zeros(len(example.tokens), dtype=bool)
    labelled[example.start :] = True if example.labelled is None else example.labelled
    return zip(example.tokens.tolist(), renderer.pieces(example.tokens), labelled.tolist(), strict=True)
