"""Where the time of runs went: phases of a step, one step in full, and the account of the whole run."""

from collections.abc import Sequence

import numpy as np

from minidist.report.figures import figure, phase_bars, step_bars
from minidist.report.groups import Group
from minidist.report.runs import RunFiles
from minidist.report.text import from_rich, number, shown
from minidist.run.accounting import Account, lines, table

_STEPS, _ACCOUNTS = 4, 8
"""Runs whose step is drawn, and whose account is shown."""


def time(groups: Sequence[Group]) -> str:
    """The section."""
    rows = {group.label: phases for group in groups if (phases := _phases(group))}
    found = []
    if rows:
        found.append(figure("Where the time of a step goes", phase_bars(rows), note="mean over steps and runs", wide=True))
    found += [_step(run) for run in [group.runs[0] for group in groups if group.runs[0].step is not None][:_STEPS]]
    made = f'<div class="panels">{"".join(found)}</div>' if found else ""
    return made + "".join(_account(group.runs[0]) for group in groups[:_ACCOUNTS])


def _step(run: RunFiles) -> str:
    assert run.step is not None
    left = f", {run.step.left_out} more actors are left out" if run.step.left_out else ""
    note = f"{run.name}: {number(run.step.seconds, 3)} s, the middle one of {run.step.steps:,} recorded steps{left}"
    return figure("Who works when in a step", step_bars(run.step), name=f"{run.name}/timeline.json", note=note, wide=True)


def _phases(group: Group) -> dict[str, float]:
    """Mean seconds of each phase of a step, and of the rest of the step."""
    means = {name: float(np.mean(values)) for name in group.names() if (values := _means(group, name))}
    found = {name[5:-2]: value for name, value in means.items() if name.startswith("time/") and name.endswith("_s")}
    left = means.get("speed/seconds_per_step", 0.0) - sum(found.values())
    return found | ({"other": left} if left > 0 else {})


def _means(group: Group, name: str) -> list[float]:
    """The mean of a metric over the steps of each run."""
    curves = [run.metrics.columns[name].curve()[1] for run in group.runs if name in run.metrics.columns]
    known = [values[np.isfinite(values)] for values in curves]
    return [float(values.mean()) for values in known if len(values)]


def _account(run: RunFiles) -> str:
    record = (run.summary or {}).get("time")
    if not record or not record["account"]["steps"]:
        return ""
    below = "".join(f'<p class="note">{shown(line)}</p>' for line in lines(record))
    inner = from_rich(table(Account.from_record(record["account"]))) + below
    return f'<details class="more"><summary>Account of {shown(run.name)}</summary>{inner}</details>'
