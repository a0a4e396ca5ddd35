"""The parts of the page, each made of the same runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from minidist.report.changes import EVALUATED, evaluation, overview
from minidist.report.comparisons import comparison_html, influence_html
from minidist.report.costs import time
from minidist.report.figures import panels
from minidist.report.groups import Group, differences, value_of
from minidist.report.runs import RunFiles, flat
from minidist.report.samples import samples_html
from minidist.report.text import brief, number, shown, table, table_of_html


@dataclass(frozen=True)
class Area:
    """A section of curves. lead: metrics that come first and are unfolded; prefixes: of all its metrics."""

    heading: str
    lead: Sequence[str] = ()
    prefixes: Sequence[str] = ("",)


_LOSSES = ("loss/nats_per_token", "kl/reverse_nats", "kl/forward_nats", "policy/reward_mean_nats")
_LESSONS = ("student/loss", "teacher/loss", "influence/mean")
_TEXT = ("length_mean_tokens", "truncated_frac", "repetition_frac", "distinct_4")
_COSTS = ("speed/", "time/", "memory/", "tokens/", "padding/", "bytes/", "flops/", "utilisation/", "idle/", "cache/")
_AREAS = {
    "training": Area(
        "Loss, divergence and reward",
        (*_LOSSES, *_LESSONS, "learner/grad_norm", "learner/lr"),
        ("loss/", "kl/", "policy/", "reward/", "student/", "teacher/", "influence/", "learner/", "main/"),
    ),
    "text": Area(
        "Text that was written",
        (*(f"rollout/{name}" for name in _TEXT), "age/updates_max"),
        ("rollout/", "mixed/", "age/", "replay/"),
    ),
    "speed": Area(
        "Speed and memory",
        ("speed/loss_tokens_per_s", "speed/rows_per_s", "speed/seconds_per_step", "memory/peak_gib"),
        _COSTS,
    ),
    "other": Area("Other metrics"),
}
_HEALTH = ("canary/engine_learner_nats_mean", "canary/sync_nats_max", "canary/teacher_logprob_nats", "cluster/restarts")
_SAMPLED, _CONFIGURED = 6, 12
"""Runs whose answers, and whose settings, are shown."""


def curves(key: str) -> Callable[[Sequence[Group]], str]:
    """Makes the section of `_AREAS` with this name."""
    area = _AREAS[key]
    others = tuple(prefix for each in _AREAS.values() if each is not area for prefix in each.prefixes if prefix)
    excluded = (*EVALUATED, *(others if key == "other" else ()))

    def make(groups: Sequence[Group]) -> str:
        names = dict.fromkeys(name for group in groups for name in group.names())
        own = [name for name in names if name.startswith(tuple(area.prefixes)) and not name.startswith(excluded)]
        first = [name for name in area.lead if name in own]
        return panels(first, sorted(name for name in own if name not in first and name not in _HEALTH), groups)

    return make


def health(groups: Sequence[Group]) -> str:
    """Alarms, canaries, and restarts of actors."""
    runs = [run for group in groups for run in group.runs]
    raised = [[shown(run.name), brief(alarm)] for run in runs for alarm in run.alarms]
    found = table_of_html(["run", "alarm"], raised, kind="alarms") if raised else ""
    if not raised and any(run.stage == "distill" for run in runs):
        found = '<p class="quiet">No alarm was raised.</p>'
    rows = [_canaries(run) for run in runs if run.summary and ("canaries" in run.summary or "supervision" in run.summary)]
    if rows:
        heads = ["run", "engine against learner, worst, nats", "syncs proved", "restarts of actors"]
        found += table(heads, rows, kind="numbers")
    names = [name for name in _HEALTH if any(name in group.names() for group in groups)]
    return found + panels(names, [], groups)


def _canaries(run: RunFiles) -> list[str]:
    summary = run.summary or {}
    canaries, supervision = summary.get("canaries") or {}, summary.get("supervision") or {}
    worst, syncs = canaries.get("engine_learner_nats_mean_worst"), summary.get("syncs_proved")
    restarts = [f"{name} {count}" for name, count in (supervision.get("restarts") or {}).items()]
    restarts += [f"{name} given up" for name in supervision.get("given_up") or ()]
    checked = number(worst, 3) if isinstance(worst, float) else "–"
    return [run.name, checked, f"{syncs:,}" if isinstance(syncs, int) else "–", ", ".join(restarts) or "none"]


def samples(groups: Sequence[Group]) -> str:
    """Answers of the first run of each group that has any."""
    found = [next((run for run in group.runs if run.samples), None) for group in groups]
    first = [run for run in found if run is not None][:_SAMPLED]
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
    found = _differences(groups) if len(groups) > 1 else ""
    for group in groups[:_CONFIGURED]:
        if settings := flat(group.runs[0].config):
            inner = table(["setting", "value"], [[key, value_of(settings, key)[:400]] for key in settings], kind="settings")
            found += f'<details class="more"><summary>All settings of {shown(group.label)}</summary>{inner}</details>'
    return found


def _differences(groups: Sequence[Group]) -> str:
    rows = [[key, *(value[:200] for value in values)] for key, values in differences(groups).items()]
    if not rows:
        return '<p class="quiet">The configurations differ only in seed and directory.</p>'
    return table(["setting", *(group.label for group in groups)], rows, kind="settings")


def sections() -> Iterator[tuple[str, str, Callable[[Sequence[Group]], str]]]:
    """Each section's anchor, heading and maker, in the order of the page."""
    yield "overview", "Overview", overview
    yield "comparison", "Results of the stage", comparisons
    yield "evaluation", "Evaluation, before and after", evaluation
    for key in ("training", "text"):
        yield key, _AREAS[key].heading, curves(key)
    yield "health", "Health", health
    yield "lessons", "Influence of rows", lessons
    yield "time", "Where the time went", time
    yield "speed", _AREAS["speed"].heading, curves("speed")
    yield "samples", "Samples, token by token", samples
    yield "other", _AREAS["other"].heading, curves("other")
    yield "configuration", "Configuration", configuration


def problems(runs: Sequence[RunFiles], failed: Sequence[str]) -> str:
    """Files that could not be used, and sections that could not be made."""
    found = dict.fromkeys([*failed, *(problem for run in runs for problem in run.problems)])
    if not found:
        return ""
    first = "".join(f"<li>{brief(problem, 600)}</li>" for problem in list(found)[:100])
    more = f"<li>{len(found) - 100} more</li>" if len(found) > 100 else ""
    return f'<section id="problems" class="problems"><h2>Files that could not be used</h2><ul>{first}{more}</ul></section>'


def legend(groups: Sequence[Group]) -> str:
    """The groups with their colours; the page's script lets each be hidden."""
    return "".join(_chip(group) for group in groups)


def _chip(group: Group) -> str:
    count = f" <small>{len(group.runs)} seeds</small>" if len(group.runs) > 1 else ""
    swatch = f'<i class="swatch {group.dash}" style="--colour: var({group.colour})"></i>'
    opening = f'<button type="button" class="chip" data-group="{group.number}" aria-pressed="true">'
    return f"{opening}{swatch}{shown(group.label)}{count}</button>"
