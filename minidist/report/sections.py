"""The parts of the page, each made of the same runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minidist.report.comparisons import comparison_html, influence_html
from minidist.report.curves import ends
from minidist.report.figures import figure, is_share, metric_figure, phase_bars, step_bars, title, unit
from minidist.report.groups import Group, differences, seeds, value_of
from minidist.report.runs import RunFiles, flat
from minidist.report.samples import samples_html
from minidist.report.text import brief, facts, from_rich, number, seconds, shown, table, table_of_html
from minidist.run.accounting import Account
from minidist.run.accounting import lines as account_lines
from minidist.run.accounting import table as account_table

EVALUATED = ("evaluation/", "validation/")

_BETTER = {"accuracy": 1, "rouge_l": 1, "f1": 1, "macro_f1": 1, "matthews": 1, "pearson": 1, "spearman": 1, "mean": 0}
_BETTER |= {"reverse_kl": -1, "forward_kl": -1, "exposure_bias": -1, "loss": -1, "loss_nats_per_token": -1, "truncated_frac": -1}
_BETTER |= {"repetition_frac": -1, "reverse_kl_per_sequence": -1, "forward_kl_per_sequence": -1}
"""Figures that are better where they are greater (1) or less (-1)."""

_CURVES: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "training": (
        "Loss, divergence and reward",
        ("loss/nats_per_token", "kl/reverse_nats", "kl/forward_nats", "policy/reward_mean_nats", "student/loss", "teacher/loss")
        + ("influence/mean", "learner/grad_norm", "learner/lr"),
        ("loss/", "kl/", "policy/", "reward/", "student/", "teacher/", "influence/", "learner/", "main/"),
    ),
    "text": (
        "Text that was written",
        ("rollout/length_mean_tokens", "rollout/truncated_frac", "rollout/repetition_frac", "rollout/distinct_4", "age/updates_max"),
        ("rollout/", "mixed/", "age/", "replay/"),
    ),
    "speed": (
        "Speed and memory",
        ("speed/loss_tokens_per_s", "speed/rows_per_s", "speed/seconds_per_step", "memory/peak_gib"),
        ("speed/", "time/", "memory/", "tokens/", "padding/", "bytes/", "flops/", "utilisation/", "idle/", "cache/"),
    ),
    "other": ("Other metrics", (), ("",)),
}
_HEALTH = ("canary/engine_learner_nats_mean", "canary/sync_nats_max", "canary/teacher_logprob_nats", "cluster/restarts")


def overview(groups: Sequence[Group]) -> str:
    """What was run and how it ended: a card a group."""
    return f'<div class="cards">{"".join(_card(group) for group in groups[:24])}</div>'


def _card(group: Group) -> str:
    run = group.runs[0]
    settings = flat(run.config)
    taken = " / ".join(sorted({f"{each.steps_taken:,}" for each in group.runs}))
    asked = f" of {run.steps_asked:,}" if run.steps_asked else ""
    names = ("objective.type", "method", "lesson.type", "program.type")
    spent = [each.summary["seconds"] for each in group.runs if each.summary and isinstance(each.summary.get("seconds"), int | float)]
    pairs = [
        ("runs", ", ".join(each.name for each in group.runs) if len(group.runs) < 6 else len(group.runs)),
        ("seeds", seeds(group)),
        ("student", settings.get("student.model")),
        ("teacher", settings.get("teacher.model")),
        ("objective", next((settings[name] for name in names if settings.get(name)), None)),
        ("steps", f"{taken}{asked}" if run.metrics.columns else None),
        ("time", seconds(float(np.mean(spent))) + (" a run" if len(spent) > 1 else "") if spent else None),
        ("state", "; ".join(dict.fromkeys(each.state for each in group.runs))),
    ]
    swatch = f'<i class="swatch" style="--colour: var({group.colour})"></i>'
    return f"<article><h3>{swatch}{shown(group.label)} <small>{shown(group.stage)}</small></h3>{facts(pairs)}{_tiles(group)}</article>"


def _tiles(group: Group) -> str:
    """The figures that a reader asks for first."""
    found = []
    for name, (before, after) in _before_after(group).items():
        if name.partition("/")[2] in ("accuracy", "rouge_l", "reverse_kl", "student/accuracy", "student/loss", "loss_nats_per_token"):
            found.append(_tile(title(name), _value(name, after), f"from {_value(name, before)}", unit(name)))
    speed = [value for each in group.runs if (value := _median(each, "speed/loss_tokens_per_s")) is not None]
    found += [_tile("speed", number(float(np.mean(speed)), 3), "loss tokens/s, median step", "")] if speed else []
    raised = sum(len(each.alarms) for each in group.runs)
    if group.runs[0].stage == "distill":
        found.append(_tile("alarms", str(raised), "see Health" if raised else "none raised", "", bad=raised > 0))
    return f'<div class="tiles">{"".join(found)}</div>' if found else ""


def _tile(name: str, value: str, note: str, of: str, *, bad: bool = False) -> str:
    unit_text = f" <small>{shown(of)}</small>" if of else ""
    return f'<div class="tile{" bad" if bad else ""}"><span>{shown(name)}</span><b>{shown(value)}{unit_text}</b><small>{shown(note)}</small></div>'


def _median(run: RunFiles, name: str) -> float | None:
    if name not in run.metrics.columns:
        return None
    values = run.metrics.columns[name].curve()[1]
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _value(name: str, values: Sequence[float]) -> str:
    """The mean over runs, with its standard deviation from two runs on."""
    scale, digits = (100.0, 3) if is_share(name) else (1.0, 3)
    found = number(float(np.mean(values)) * scale, digits)
    if len(values) > 1:
        found += f" ± {number(float(np.std(values, ddof=1)) * scale, 2)}"
    return found + (" %" if is_share(name) else "")


def _before_after(group: Group) -> dict[str, tuple[list[float], list[float]]]:
    """First and last value of each evaluated figure, by run; of figures that were evaluated twice or more."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for run in group.runs:
        for name, (first, last, _) in ends(run.metrics.columns, EVALUATED).items():
            if not name.endswith(("_se", "_sd")) and len(run.metrics.columns[name].steps) > 1:
                before, after = found.setdefault(name, ([], []))
                before.append(first)
                after.append(last)
    return found


def evaluation(groups: Sequence[Group]) -> str:
    """Before and after training, and between."""
    found = {group.number: _before_after(group) for group in groups}
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    measured = [group for group in groups if found[group.number]]
    head = ["", *(f"{shown(group.label)}: {part}" for group in measured for part in ("before", "after"))]
    rows = [[_label(name), *(_change(name, found[group.number].get(name)) for group in measured)] for name in names]
    flat_rows = [[row[0], *(cell for pair in row[1:] for cell in pair)] for row in rows]
    made = table_of_html(head, flat_rows, kind="numbers") if names else ""
    lead = [name for name in names if name.rpartition("/")[2] in _BETTER and not name.endswith("_per_sequence")]
    return made + _panels(lead, [name for name in names if name not in lead], groups)


def _label(name: str) -> str:
    text = unit(name)
    return shown(title(name)) + (f" <small>{shown(text)}</small>" if text else "")


def _change(name: str, values: tuple[list[float], list[float]] | None) -> tuple[str, str]:
    if values is None:
        return "–", "–"
    before, after = values
    rise = np.sign(float(np.mean(after)) - float(np.mean(before))) * _BETTER.get(name.rpartition("/")[2], 0)
    mark = {1: ' <span class="good" title="better">▲</span>', -1: ' <span class="worse" title="worse">▼</span>'}.get(int(rise) if rise == rise else 0, "")
    return shown(_value(name, before)), shown(_value(name, after)) + mark


def curves(key: str) -> Callable[[Sequence[Group]], str]:
    """Makes the section of `_CURVES` with this name."""

    def make(groups: Sequence[Group]) -> str:
        _, lead, prefixes = _CURVES[key]
        earlier = tuple(prefix for other, (_, _, each) in _CURVES.items() if other != key for prefix in each if prefix)
        names = [name for group in groups for name in group.names()]
        own = [name for name in dict.fromkeys(names) if _belongs(name, prefixes, earlier if key == "other" else ())]
        first = [name for name in lead if name in own]
        return _panels(first, sorted(name for name in own if name not in first), groups)

    return make


def _belongs(name: str, prefixes: Sequence[str], others: tuple[str, ...]) -> bool:
    return name.startswith(tuple(prefixes)) and not name.startswith((*EVALUATED, *others)) and name not in _HEALTH


def _panels(lead: Sequence[str], others: Sequence[str], groups: Sequence[Group]) -> str:
    """Figures of metrics; the others lie folded up below."""
    found = "".join(metric_figure(name, groups) for name in lead)
    made = f'<div class="panels">{found}</div>' if found else ""
    if not others:
        return made
    more = "".join(metric_figure(name, groups) for name in others)
    return f'{made}<details class="more"><summary>{len(others)} more</summary><div class="panels">{more}</div></details>'


def health(groups: Sequence[Group]) -> str:
    """Alarms, canaries, and restarts of actors."""
    runs = [run for group in groups for run in group.runs]
    raised = [[shown(run.name), brief(alarm)] for run in runs for alarm in run.alarms]
    checked = [run for run in runs if run.stage == "distill" or run.alarms]
    found = ""
    if raised:
        found = table_of_html(["run", "alarm"], raised, kind="alarms")
    elif checked:
        found = '<p class="quiet">No alarm was raised.</p>'
    rows = [_canaries(run) for run in runs if run.summary and ("canaries" in run.summary or "supervision" in run.summary)]
    if rows:
        found += table(["run", "engine against learner, worst, nats", "syncs proved", "restarts of actors"], rows, kind="numbers")
    names = [name for name in _HEALTH if any(name in group.names() for group in groups)]
    return found + _panels(names, [], groups)


def _canaries(run: RunFiles) -> list[str]:
    summary = run.summary or {}
    canaries, supervision = summary.get("canaries") or {}, summary.get("supervision") or {}
    worst, syncs = canaries.get("engine_learner_nats_mean_worst"), summary.get("syncs_proved")
    restarts = supervision.get("restarts")
    if isinstance(restarts, Mapping):
        restarts = ", ".join(f"{name} {count}" for name, count in restarts.items()) or 0
    proved = f"{syncs:,}" if isinstance(syncs, int) else "–"
    return [run.name, number(worst, 3) if isinstance(worst, float) else "–", proved, "–" if restarts is None else str(restarts)]


def time(groups: Sequence[Group]) -> str:
    """Where the time went: phases, one step in full, and the account of the whole run."""
    rows = {group.label: phases for group in groups if (phases := _phases(group))}
    found = figure("Where the time of a step goes", phase_bars(rows), note="mean over steps and runs", wide=True) if rows else ""
    steps = [(run, run.step) for group in groups for run in group.runs[:1] if run.step is not None]
    for run, step in steps[:4]:
        left = f", {step.left_out} more actors are left out" if step.left_out else ""
        note = f"{run.name}: {number(step.seconds, 3)} s, the middle one of {step.steps:,} recorded steps{left}"
        found += figure("Who works when in a step", step_bars(step), name=f"{run.name}/timeline.json", note=note, wide=True)
    made = f'<div class="panels">{found}</div>' if found else ""
    return made + "".join(_account(group.runs[0]) for group in groups[:8])


def _phases(group: Group) -> dict[str, float]:
    """Mean seconds of each phase of a step, and of the rest of the step."""
    means = {name: [_mean(run, name) for run in group.runs if name in run.metrics.columns] for name in group.names()}
    found = {name[5:-2]: float(np.mean(values)) for name, values in means.items() if name.startswith("time/") and name.endswith("_s") and values}
    whole = means.get("speed/seconds_per_step")
    if whole and (left := float(np.mean(whole)) - sum(found.values())) > 0:
        found["other"] = left
    return found


def _mean(run: RunFiles, name: str) -> float:
    values = run.metrics.columns[name].curve()[1]
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0


def _account(run: RunFiles) -> str:
    record = (run.summary or {}).get("time")
    if not record or not record["account"]["steps"]:
        return ""
    below = "".join(f'<p class="note">{shown(line)}</p>' for line in account_lines(record))
    inner = from_rich(account_table(Account.from_record(record["account"]))) + below
    return f'<details class="more"><summary>Account of {shown(run.name)}</summary>{inner}</details>'


def samples(groups: Sequence[Group]) -> str:
    """Answers of the first run of each group."""
    found = [(group, run) for group in groups for run in group.runs if run.samples]
    first = list({group.number: run for group, run in reversed(found)}.values())[::-1][:6]
    named = len(first) > 1
    return "".join((f"<h3>{shown(run.name)}</h3>" if named else "") + samples_html(run.samples) for run in first)


def lessons(groups: Sequence[Group]) -> str:
    """Influence of single rows."""
    found = "".join(influence_html(run) for group in groups for run in group.runs)
    return f'<div class="panels">{found}</div>' if found else ""


def comparisons(groups: Sequence[Group]) -> str:
    """Tables and pictures that the stages made."""
    found = [(run, comparison_html(run)) for group in groups for run in group.runs]
    return "".join(f"<h3>{shown(run.name)}</h3>{made}" for run, made in found if made)


def configuration(groups: Sequence[Group]) -> str:
    """The settings in which the runs differ, and all settings of each."""
    found = ""
    if len(groups) > 1:
        changed = differences(groups)
        rows = [[key, *(value[:200] for value in values)] for key, values in changed.items()]
        heads = ["setting", *(group.label for group in groups)]
        found = table(heads, rows, kind="settings") if rows else '<p class="quiet">The configurations differ only in seed and directory.</p>'
    for group in groups[:12]:
        settings = flat(group.runs[0].config)
        if settings:
            rows = [[key, value_of(settings, key)[:400]] for key in settings]
            inner = table(["setting", "value"], rows, kind="settings")
            found += f'<details class="more"><summary>All settings of {shown(group.label)}</summary>{inner}</details>'
    return found


def sections() -> Iterator[tuple[str, str, Callable[[Sequence[Group]], str]]]:
    """Each section's anchor, heading and maker, in the order of the page."""
    yield "overview", "Overview", overview
    yield "comparison", "Results of the stage", comparisons
    yield "health", "Health", health
    yield "evaluation", "Evaluation, before and after", evaluation
    for key in ("training", "text"):
        yield key, _CURVES[key][0], curves(key)
    yield "lessons", "Influence of rows", lessons
    yield "time", "Where the time went", time
    yield "speed", _CURVES["speed"][0], curves("speed")
    yield "samples", "Samples, token by token", samples
    yield "other", _CURVES["other"][0], curves("other")
    yield "configuration", "Configuration", configuration


def problems(runs: Sequence[RunFiles], failed: Sequence[str]) -> str:
    """Files that could not be used, and sections that could not be made."""
    found = [*failed, *(problem for run in runs for problem in run.problems)]
    shown_first = "".join(f"<li>{brief(problem, 600)}</li>" for problem in dict.fromkeys(found[:100]))
    return f'<section id="problems" class="problems"><h2>Files that could not be used</h2><ul>{shown_first}</ul></section>' if found else ""


def legend(groups: Sequence[Group]) -> str:
    """The groups with their colours; the page's script lets each be hidden."""
    return "".join(
        f'<button type="button" class="chip" data-group="{group.number}" aria-pressed="true">'
        f'<i class="swatch {group.dash}" style="--colour: var({group.colour})"></i>{shown(group.label)}'
        f"{f' <small>{len(group.runs)} seeds</small>' if len(group.runs) > 1 else ''}</button>"
        for group in groups
    )


