"""What training changed: evaluated figures of a group before and after, as cards, tiles and a table."""

from collections.abc import Sequence

import numpy as np

from minidist.report.curves import ends
from minidist.report.figures import is_share, panels, title, unit
from minidist.report.groups import Group, seeds
from minidist.report.runs import RunFiles, flat
from minidist.report.text import facts, number, seconds, shown, table_of_html

EVALUATED = ("evaluation/", "validation/")

_LESS: tuple[str, ...] = ("reverse_kl", "forward_kl", "exposure_bias", "loss", "loss_nats_per_token")
_LESS += ("truncated_frac", "repetition_frac")
_MORE: tuple[str, ...] = ("accuracy", "rouge_l", "f1", "macro_f1", "matthews", "pearson", "spearman")
_BETTER: dict[str, int] = {**dict.fromkeys(_LESS, -1), **dict.fromkeys(_MORE, 1)}
"""Figures that are better where they are less (-1) or greater (1)."""

_TILES = ("accuracy", "rouge_l", "reverse_kl", "forward_kl", "student/accuracy", "student/loss", "loss_nats_per_token")
_METHODS = ("objective.type", "method", "lesson.type", "program.type")
_CARDS = 24

Change = tuple[list[float], list[float]]
"""First and last values of a figure, of each run that has it."""


def overview(groups: Sequence[Group]) -> str:
    """What was run and how it ended: a card a group."""
    return f'<div class="cards">{"".join(_card(group) for group in groups[:_CARDS])}</div>'


def _card(group: Group) -> str:
    run = group.runs[0]
    settings = flat(run.config)
    taken = " / ".join(sorted({f"{each.steps_taken:,}" for each in group.runs}))
    asked = f" of {run.steps_asked:,}" if run.steps_asked else ""
    spent = [each.seconds for each in group.runs if each.seconds is not None]
    pairs = [
        ("runs", ", ".join(each.name for each in group.runs) if len(group.runs) < 6 else len(group.runs)),
        ("seeds", seeds(group)),
        ("student", settings.get("student.model")),
        ("teacher", settings.get("teacher.model")),
        ("objective", next((settings[name] for name in _METHODS if settings.get(name)), None)),
        ("steps", f"{taken}{asked}" if run.metrics.columns else None),
        ("time", seconds(float(np.mean(spent))) + (" a run" if len(spent) > 1 else "") if spent else None),
        ("alarms", "none" if group.stage == "distill" and not any(each.alarms for each in group.runs) else None),
        ("state", "; ".join(dict.fromkeys(each.state for each in group.runs))),
    ]
    swatch = f'<i class="swatch {group.dash}" style="--colour: var({group.colour})"></i>'
    heading = f"<h3>{swatch}{shown(group.label)} <small>{shown(group.stage)}</small></h3>"
    return f"<article>{heading}{facts(pairs)}{_tiles(group)}</article>"


def _tiles(group: Group) -> str:
    """The figures that a reader asks for first."""
    found = []
    for name, (before, after) in before_after(group).items():
        if name.partition("/")[2] in _TILES:
            found.append(_tile(title(name), _value(name, after), f"from {_value(name, [float(np.mean(before))])} {unit(name)}"))
    speed = [value for each in group.runs if (value := _median(each, "speed/loss_tokens_per_s")) is not None]
    found += [_tile("Speed", number(float(np.mean(speed)), 3), "loss tokens/s, median step")] if speed else []
    raised = sum(len(each.alarms) for each in group.runs)
    found += [_tile("Alarms", str(raised), "see Health", bad=True)] if raised else []
    return f'<div class="tiles">{"".join(found)}</div>' if found else ""


def _tile(name: str, value: str, note: str, *, bad: bool = False) -> str:
    mean, plus, spread = value.partition(" ± ")
    small = f" <small>± {shown(spread)}</small>" if plus else ""
    kind = "tile bad" if bad else "tile"
    return f'<div class="{kind}"><span>{shown(name)}</span><b>{shown(mean)}{small}</b><small>{shown(note)}</small></div>'


def _median(run: RunFiles, name: str) -> float | None:
    if name not in run.metrics.columns:
        return None
    values = run.metrics.columns[name].curve()[1]
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _value(name: str, values: Sequence[float]) -> str:
    """The mean over runs, with its standard deviation from two runs on."""
    scale = 100.0 if is_share(name) else 1.0
    found = number(float(np.mean(values)) * scale, 3)
    if len(values) > 1:
        found += f" ± {number(float(np.std(values, ddof=1)) * scale, 2)}"
    return found + (" %" if is_share(name) else "")


def before_after(group: Group) -> dict[str, Change]:
    """First and last value of each figure that was evaluated twice or more."""
    found: dict[str, Change] = {}
    for run in group.runs:
        for name, (first, last, _) in ends(run.metrics.columns, EVALUATED).items():
            if not name.endswith(("_se", "_sd")) and len(run.metrics.columns[name].steps) > 1:
                before, after = found.setdefault(name, ([], []))
                before.append(first)
                after.append(last)
    return found


def evaluation(groups: Sequence[Group]) -> str:
    """Before and after training as a table, and every evaluation as curves."""
    found = {group.number: before_after(group) for group in groups}
    measured = [group for group in groups if found[group.number]]
    names = list(dict.fromkeys(name for group in measured for name in found[group.number]))
    head = ["", *(f"{shown(group.label)}: {part}" for group in measured for part in ("before", "after"))]
    rows = [
        [_label(name), *(cell for group in measured for cell in _change(name, found[group.number].get(name)))] for name in names
    ]
    made = table_of_html(head, rows, kind="numbers") if names else ""
    lead = [name for name in names if name.rpartition("/")[2] in _BETTER]
    return made + panels(lead, [name for name in names if name not in lead], groups)


def _label(name: str) -> str:
    text = unit(name)
    return shown(title(name)) + (f" <small>{shown(text)}</small>" if text else "")


def _change(name: str, values: Change | None) -> tuple[str, str]:
    """The cells of before and after, the latter with a mark of what is better."""
    if values is None:
        return "–", "–"
    before, after = values
    rise = (float(np.mean(after)) - float(np.mean(before))) * _BETTER.get(name.rpartition("/")[2], 0)
    mark = ' <span class="good">better</span>' if rise > 0 else ""
    mark = ' <span class="worse">worse</span>' if rise < 0 else mark
    return shown(_value(name, before)), shown(_value(name, after)) + mark
