"""Figures of the page as data that its script draws with Plotly: curves, bars and the timeline of a step.

A colour is the name of a property of the page's style, such as `var(--series-0)`, so that a figure follows light and dark.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minidist.report.curves import POINTS, Curve
from minidist.report.groups import Group
from minidist.report.text import shown
from minidist.report.timeline import Step
from minidist.types import Array

PHASE_COLOURS = {"generate": 0, "score": 1, "update": 2, "credit": 3, "check": 4, "publish": 5, "other": 6}
"""Colours of the phases of a step by their numbers."""

_TITLES = {
    "loss/nats_per_token": "Loss",
    "kl/reverse_nats": "Reverse KL on the student's text",
    "kl/forward_nats": "Forward KL",
    "student/loss": "Loss of the student",
    "teacher/loss": "Loss of the teacher",
    "policy/reward_mean_nats": "Mean reward",
    "policy/clip_frac": "Clipped tokens",
    "policy/disliked_frac": "Tokens the teacher dislikes",
    "rollout/length_mean_tokens": "Length of answers",
    "rollout/truncated_frac": "Truncated answers",
    "rollout/repetition_frac": "Repeated 4-grams",
    "rollout/distinct_4": "Distinct 4-grams",
    "learner/grad_norm": "Gradient norm",
    "learner/lr": "Learning rate",
    "learner/loss_tokens": "Loss tokens in a step",
    "age/updates_max": "Age of the oldest token",
    "speed/loss_tokens_per_s": "Loss tokens a second",
    "speed/seconds_per_step": "Seconds a step",
    "memory/peak_gib": "Peak memory",
    "canary/engine_learner_nats_mean": "Engine against learner",
    "canary/sync_nats_max": "Weight sync, largest difference",
    "canary/teacher_logprob_nats": "Teacher's mean log-probability",
    "cluster/restarts": "Restarts of actors",
    "influence/mean": "Mean influence",
}
_LAST = {
    "accuracy": "Accuracy",
    "rouge_l": "ROUGE-L",
    "reverse_kl": "Reverse KL",
    "forward_kl": "Forward KL",
    "exposure_bias": "Exposure bias",
    "loss_nats_per_token": "Loss",
    "loss": "Loss",
    "f1": "F1",
    "reverse_kl_per_sequence": "Reverse KL of a sequence",
    "forward_kl_per_sequence": "Forward KL of a sequence",
    "length_mean_tokens": "Length of answers",
    "truncated_frac": "Truncated answers",
    "repetition_frac": "Repeated 4-grams",
    "distinct_4": "Distinct 4-grams",
}
_UNITS = {
    "_nats_per_token": "nats a token",
    "nats_per_token": "nats a token",
    "_tokens_per_s": "tokens/s",
    "_rows_per_s": "rows/s",
    "_nats": "nats",
    "_nats_mean": "nats",
    "_nats_max": "nats",
    "_kl": "nats a token",
    "_kl_per_sequence": "nats",
    "_tokens": "tokens",
    "_gib": "GiB",
    "_mib": "MiB",
    "_tflop": "TFLOP",
    "updates_max": "optimizer steps",
    "exposure_bias": "percent",
    "seconds_per_step": "seconds",
    "_s": "seconds",
}
_EVENTS = ("cluster/restarts",)
"""Metrics of steps in which something happened: points, which no line joins."""

_SHARES = ("_frac", "accuracy", "_f1", "/f1")


def title(name: str) -> str:
    """What a metric is, for people; its own name where the page has no words for it."""
    if name in _TITLES:
        return _TITLES[name]
    area, _, rest = name.partition("/")
    side, slash, last = rest.rpartition("/")
    if area in ("evaluation", "validation") and last in _LAST:
        return _LAST[last] + (f" of the {side}" if slash else "")
    return rest.replace("_", " ") or name


def unit(name: str) -> str:
    """The unit that the end of a metric's name says.

    >>> unit("kl/reverse_nats"), unit("time/update_s"), unit("policy/ratio_mean")
    ('nats', 'seconds', '')
    """
    return next((text for end, text in _UNITS.items() if name.endswith(end)), "")


def is_share(name: str) -> bool:
    """Whether a metric is a share, shown in percent."""
    return name.endswith(_SHARES)


def points_of(groups: Sequence[object]) -> int:
    """Points of each curve where a figure has so many: a page of many runs stays small."""
    return max(80, min(POINTS, 3200 // max(1, len(groups))))


def metric_figure(name: str, groups: Sequence[Group]) -> str:
    """The figure of a metric: one curve a group."""
    points = points_of(groups)
    found = [(group, curve) for group in groups if (curve := group.curve(name, points)) is not None]
    evaluated = name.startswith(("evaluation/", "validation/"))
    if evaluated:
        found = [(group, _with_error(group, name, curve)) for group, curve in found]
    series = [curve_data(group.label, group.colour, curve, dash=group.dash, group=group.number) for group, curve in found]
    data: dict[str, Any] = {"kind": "curves", "series": series, "smooth": not evaluated}
    data |= {"percent": True} if is_share(name) else {}
    data |= {"points": True} if name in _EVENTS else {}
    return figure(title(name), data, name=name, note="" if is_share(name) else unit(name))


def panels(lead: Sequence[str], others: Sequence[str], groups: Sequence[Group]) -> str:
    """Figures of metrics; the others lie folded up below."""
    found = "".join(metric_figure(name, groups) for name in lead)
    made = f'<div class="panels">{found}</div>' if found else ""
    if not others:
        return made
    more = "".join(metric_figure(name, groups) for name in others)
    return f'{made}<details class="more"><summary>{len(others)} more</summary><div class="panels">{more}</div></details>'


def _with_error(group: Group, name: str, curve: Curve) -> Curve:
    """The curve of a single run with its standard error as a band, where that is a metric too."""
    error = group.curve(f"{name}_se", len(curve.steps)) if curve.runs == 1 else None
    if error is None or len(error.steps) != len(curve.steps):
        return curve
    return replace(curve, low=curve.values - error.values, high=curve.values + error.values)


def curve_data(label: str, colour: str, curve: Curve, *, dash: str = "solid", group: int | None = None) -> dict[str, Any]:
    """A curve for the page's script. `group`: number of the runs that it is of; None: it is always shown."""
    found: dict[str, Any] = {"name": shown(label), "colour": f"var({colour})", "x": rounded(curve.steps)}
    found |= {"y": rounded(curve.values), "dash": dash, "group": group}
    if curve.low is not None and curve.high is not None:
        found |= {"low": rounded(curve.low), "high": rounded(curve.high)}
    return found


def rounded(values: Iterable[float] | Array) -> list[float | None]:
    """Numbers for JSON, to six digits; null where one is not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def phase_bars(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Seconds of each phase, one stacked bar a row."""
    names = [name for name in PHASE_COLOURS if any(name in row for row in rows.values())]
    labels = [shown(label) for label in rows]
    data = [_bars(name, labels, rounded(row.get(name, 0.0) for row in rows.values()), template="%{x:.3f} s") for name in names]
    layout = {"barmode": "stack", "xaxis": {"title": {"text": "seconds a step"}}, "yaxis": {"autorange": "reversed"}}
    return {"kind": "plotly", "data": data, "layout": layout, "rows": len(rows)}


def step_bars(step: Step) -> dict[str, Any]:
    """What each actor did when in a step, a row an actor."""
    actors = list(dict.fromkeys(bar.actor for bar in step.bars))
    data = []
    for name in PHASE_COLOURS:
        bars = [bar for bar in step.bars if (bar.phase if bar.phase in PHASE_COLOURS else "other") == name]
        if bars:
            lengths = [bar.end - bar.start for bar in bars]
            found = _bars(name, [shown(bar.actor) for bar in bars], rounded(lengths), "%{customdata}")
            texts = [f"{shown(bar.name)}, {length:.4f} s" for bar, length in zip(bars, lengths, strict=True)]
            data.append(found | {"base": rounded(bar.start for bar in bars), "customdata": texts})
    order = {"categoryorder": "array", "categoryarray": [shown(actor) for actor in reversed(actors)]}
    axis = {"title": {"text": "seconds since the step began"}, "range": [0, step.seconds]}
    layout = {"barmode": "overlay", "xaxis": axis, "yaxis": order}
    return {"kind": "plotly", "data": data, "layout": layout, "rows": len(actors)}


def _bars(phase: str, labels: Sequence[str], values: Sequence[float | None], template: str) -> dict[str, Any]:
    colour = {"color": f"var(--series-{PHASE_COLOURS[phase]})"}
    hover = {"hovertemplate": f"{phase}: {template}<extra></extra>"}
    return {"type": "bar", "orientation": "h", "name": phase, "y": list(labels), "x": list(values), "marker": colour, **hover}


def figure(heading: str, data: Mapping[str, Any], *, name: str = "", note: str = "", wide: bool = False) -> str:
    """The HTML of a figure. `name`: the metric that it shows, by which the page finds it again."""
    code = f"<code>{shown(name)}</code>" if name else ""
    small = f"<small>{shown(note)}</small>" if note else ""
    rows = f' style="--rows: {data["rows"]}"' if "rows" in data else ""
    kind, key, words = "panel span" if wide else "panel", shown(name or heading), shown(heading)
    # In a script element only "<" can end the data; JSON may hold it as an escape.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<figure class="{kind}" data-name="{key}"><figcaption><b>{words}</b>{small}{code}</figcaption>'
        f'<div class="plot" role="img" aria-label="{words}"{rows}></div>'
        f'<script type="application/json">{text}</script></figure>'
    )
