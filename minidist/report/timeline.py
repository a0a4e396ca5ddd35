"""One step of a run out of its timeline.json, a Chrome trace of all actors: who did what from when to when."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from minidist.run.accounting import VERBS
from minidist.run.timeline import DRIVER

_READ = 8 * 2**20
"""Bytes of a long trace that are read: its end."""

_ROWS = 24


class Bar(NamedTuple):
    """Something that an actor did: its name, the phase of the step that it belongs to, and seconds since the step began."""

    actor: str
    name: str
    phase: str
    start: float
    end: float


@dataclass(frozen=True)
class Step:
    """The step of middle length among those that a trace has whole. left_out: actors that are not among the bars."""

    seconds: float
    steps: int
    bars: Sequence[Bar]
    left_out: int = 0


def read_step(file: Path) -> Step | None:
    """The step, or None where the trace has no whole one. Raises OSError."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(min(size, 2**16)) if size > _READ else b""
        stream.seek(max(0, size - _READ))
        events = [*_events(head), *_events(stream.read(_READ))]
    actors = {event["pid"]: str(event["args"]["name"]) for event in events if _names(event)}
    spans = [event for event in events if _whole(event) and event["pid"] in actors]
    driver = [event for event in spans if actors[event["pid"]] == DRIVER]
    ends = sorted({_end(event) for event in driver if event["name"] == "publish"})
    steps = sorted((end - start, start, end) for start, end in pairwise(ends))
    if not steps:
        return None
    _, start, end = steps[len(steps) // 2]
    # A step begins with its first phase; before it lie evaluations and checkpoints.
    start = min((event["ts"] for event in driver if start <= event["ts"] < end), default=start)
    within = [event for event in spans if event["ts"] < end and _end(event) > start]
    names = list(dict.fromkeys(actors[event["pid"]] for event in sorted(within, key=lambda event: event["pid"])))
    shown = [event for event in _outer(within) if actors[event["pid"]] in names[:_ROWS]]
    bars = [_bar(event, actors[event["pid"]], start, end) for event in shown]
    return Step((end - start) / 1e6, len(steps), sorted(bars, key=lambda bar: bar.start), max(0, len(names) - _ROWS))


def _outer(events: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Whole calls, without their parts, which lie within them on the same line of their actor."""
    reached: dict[tuple[object, object], float] = {}
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        line = event["pid"], event.get("tid")
        if _end(event) > reached.get(line, float("-inf")):
            reached[line] = _end(event)
            yield event


def _bar(event: dict[str, Any], actor: str, start: float, end: float) -> Bar:
    first, last = max(event["ts"], start), min(_end(event), end)
    return Bar(actor, str(event["name"]), _phase(actor, str(event["name"])), (first - start) / 1e6, (last - start) / 1e6)


def _phase(actor: str, name: str) -> str:
    """The phase that a call belongs to; a phase of the driver is its own."""
    if actor == DRIVER:
        return name
    return "check" if name == "measure" else VERBS.get(actor.split(" ")[0], {}).get(name, "other")


def _events(text: bytes) -> Iterator[dict[str, Any]]:
    """The events of whole lines; the first and the last line of a piece may be halves."""
    for line in text.splitlines():
        try:
            event = json.loads(line.strip().strip(b","))
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("pid"), int):
            yield event


def _names(event: dict[str, Any]) -> bool:
    return event.get("name") == "process_name" and isinstance(event.get("args"), dict) and "name" in event["args"]


def _whole(event: dict[str, Any]) -> bool:
    times = (event.get("ts"), event.get("dur"))
    finite = all(isinstance(value, int | float) and abs(value) < 1e18 for value in times)
    return finite and event.get("ph") == "X" and "name" in event


def _end(event: dict[str, Any]) -> float:
    return event["ts"] + event["dur"]
