"""A forecast for people: the phases of a step, its bytes, and what to change."""

from collections.abc import Sequence
from dataclasses import replace

from minidist.preflight.forecast.advice import Option, choose, choose_payload, designs, overrides, payloads
from minidist.preflight.forecast.scenario import Design, Scenario
from minidist.preflight.forecast.seconds import busy_share, phases, step_seconds
from minidist.preflight.forecast.volumes import volumes


def forecast_lines(scenario: Scenario) -> list[str]:
    """What a step of the scenario takes."""
    workload, layout, rates = scenario.workload, scenario.layout, scenario.rates
    shown = f"{workload.prompts:,} prompts x {workload.samples}, {workload.prompt:,.0f} + {workload.answer:,.0f} tokens"
    dealt = f"{layout.rollout} rollout, {layout.teacher if scenario.teacher else 0} teacher, {layout.learner} learner"
    lines = [f"rates: {rates.name} ({rates.source})"]
    lines += [f"a step: {shown}; devices: {dealt}; {scenario.design}", *_phase_table(scenario)]
    lines += table([["a step moves", "GB"], *([name, figure(size / 1e9)] for name, size in volumes(scenario).items())])
    return lines


def _phase_table(scenario: Scenario) -> list[str]:
    each, layout = phases(scenario), scenario.layout
    devices = {"generate": layout.rollout, "score": layout.teacher, "update": layout.learner}
    rows = [["phase", "seconds", "devices"]]
    for name, seconds in vars(each).items():
        if seconds:
            rows.append([_NAMES.get(name, name), figure(seconds), str(devices.get(name, ""))])
    step = step_seconds(scenario)
    rows.append([f"step ({scenario.design})", figure(step), f"{100 * busy_share(scenario):.0f} % busy"])
    return table(rows)


_NAMES = {
    "move": "scores on their way",
    "exchange": "learner's ranks exchange",
    "publish": "publish weights",
    "decode": "texts, in the engines",
    "count": "figures of the text",
    "step": "the loop itself",
}


def advice_lines(scenario: Scenario, devices: int, sizes: dict[str, float]) -> list[str]:
    """What to change. `devices`: of all roles. `sizes`: bytes a token of each payload that the objective can use."""
    options = designs(scenario, devices)
    rows = [["design", "rollout/teacher/learner", "ZeRO", "micro-batch", "seconds", "busy"], *map(_design_row, options)]
    best = choose(options)
    lines = [f"the same {devices} devices, dealt anew:", *table(rows)]
    if best.scenario is None:
        return [*lines, "no layout fits: use more devices, or split engine and teacher over more (tensor_parallel, shards)"]
    lines.append(f"advice: {_reason(best, options)}")
    lines.append("  " + " ".join(f"{key}={value}" for key, value in overrides(best.scenario).items()))
    if best.scenario.teacher is not None and len(sizes) > 1:
        lines.append(_payload_line(payloads(best.scenario, sizes)))
    if devices > 1 and best.scenario.paths.weights == "host":
        sent = step_seconds(replace(best.scenario, paths=replace(best.scenario.paths, weights="broadcast")))
        if (saved := best.seconds - sent) > 0.02 * best.seconds:
            lines.append(f"weights by a broadcast between devices, not through the host, would save {figure(saved)} s a step")
    return lines


def _reason(best: Option, options: Sequence[Option]) -> str:
    if best.name == Design.STALE:
        strict = min(each.seconds for each in options if each.name != Design.STALE)
        return f"stale, {figure(best.seconds)} s a step; the fastest strictly on-policy design takes {figure(strict)} s"
    if best.name == Design.COLOCATED:
        return f"colocated, {figure(best.seconds)} s a step, where roles hold their devices in turn (cluster.residency)"
    stale = next(each.seconds for each in options if each.name == Design.STALE)
    return f"{best.name}, {figure(best.seconds)} s a step and strictly on-policy; text of an earlier student: {figure(stale)} s"


def _payload_line(options: Sequence[Option]) -> str:
    shown = ", ".join(f"{each.name} {figure(each.seconds)} s" for each in options)
    best = choose_payload(list(options))
    return f"payload: teacher.payload={best.name}; a step takes {shown}"


def _design_row(option: Option) -> list[str]:
    scenario = option.scenario
    if scenario is None:
        return [option.name, "does not fit", "", "", "", ""]
    layout = scenario.layout
    dealt = f"{layout.rollout}/{layout.teacher if scenario.teacher else 0}/{layout.learner}"
    zero = f"{layout.zero}{', checkpointing' if layout.checkpointing else ''}"
    return [option.name, dealt, zero, f"{layout.micro_batch:,}", figure(option.seconds), f"{100 * busy_share(scenario):.0f} %"]


def figure(value: float) -> str:
    """A number with three figures, without an exponent.

    >>> figure(12345.6), figure(12.345), figure(0.012345)
    ('12,346', '12.3', '0.0123')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
