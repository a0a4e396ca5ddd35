"""Spans: which call of which actor ran from when to when, what was counted inside, and all of them as a Chrome trace.

`timeline.json` in a run's directory opens in chrome://tracing and in Perfetto. One row a process: the driver, whose spans are
the phases of the loop, and each actor, whose spans are its calls.
"""

import json
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count as counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidist.run.files import writing

DRIVER = "driver"
"""Name of the process that runs the loop, among the actors."""

_KEPT = 20_000


class Span(NamedTuple):
    """Something that an actor did from `start` to `end`, seconds of `time.time()`.

    call: number of the call that it is, or is a part of. inner: whether it is a part. counts: amounts counted inside, by name.
    """

    name: str
    start: float
    end: float
    call: int = 0
    inner: bool = False
    counts: Mapping[str, float] = {}

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Calls:
    """The calls of an actor since it was last asked.

    done: those that have ended, and their parts, in the order of their ends. running: those under way, up to now. host, pid:
    the actor's process.
    """

    done: Sequence[Span] = ()
    running: Sequence[Span] = ()
    host: str = ""
    pid: int = 0

    @property
    def busy(self) -> list[tuple[float, float]]:
        """When the actor worked: overlapping intervals."""
        return [(span.start, span.end) for span in (*self.done, *self.running) if not span.inner]


@dataclass
class _Call:
    """A call under way."""

    number: int
    start: float
    log: "SpanLog"
    counts: dict[str, float] = field(default_factory=dict)


_CURRENT: ContextVar[_Call | None] = ContextVar("call", default=None)


class SpanLog:
    """The calls of one actor; the oldest are forgotten where nobody asks for them."""

    def __init__(self) -> None:
        self._done: deque[Span] = deque(maxlen=_KEPT)
        self._running: dict[int, tuple[str, float]] = {}
        self._numbers = counter()

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """A call runs inside; `count` and `part` find it there, and in the threads that `Worker.run` hands work to."""
        call = _Call(next(self._numbers), time.time(), self)
        self._running[call.number] = (name, call.start)
        token = _CURRENT.set(call)
        try:
            yield
        finally:
            with suppress(ValueError):  # a stream of results may be closed by another task than the one that began it
                _CURRENT.reset(token)
            del self._running[call.number]
            self._done.append(Span(name, call.start, time.time(), call.number, counts=call.counts))

    def add(self, span: Span) -> None:
        """A part of a call has ended."""
        self._done.append(span)

    def take(self) -> Calls:
        """The calls since the last time."""
        done, now = [], time.time()
        while self._done:
            done.append(self._done.popleft())
        running = [Span(name, start, now, number) for number, (name, start) in self._running.items()]
        return Calls(done, running, socket.gethostname(), os.getpid())


class Received:
    """The calls of an actor as another process knows them: those whose ends it was sent, and those that it waits for."""

    def __init__(self) -> None:
        self._done: deque[Span] = deque(maxlen=_KEPT)
        self._waiting: dict[str, Span] = {}
        self._host = ""
        self._pid = 0

    @contextmanager
    def call(self, number: str, name: str) -> Iterator[None]:
        """The answer to a call is waited for inside."""
        self._waiting[number] = Span(name, time.time(), 0.0)
        try:
            yield
        finally:
            del self._waiting[number]

    def add(self, calls: Calls) -> None:
        """An answer has brought these."""
        self._done.extend(calls.done)
        self._host, self._pid = calls.host, calls.pid

    def take(self) -> Calls:
        """The calls since the last time."""
        done, now = list(self._done), time.time()
        self._done.clear()
        return Calls(done, [span._replace(end=now) for span in self._waiting.values()], self._host, self._pid)


def count(**amounts: float) -> None:
    """Add amounts to those of the call that runs; nothing outside of a call."""
    if (call := _CURRENT.get()) is not None:
        for name, amount in amounts.items():
            call.counts[name] = call.counts.get(name, 0) + amount


def nbytes(record: object) -> int:
    """Bytes of the arrays among a record's fields; 0 for a reference, whose arrays are elsewhere."""
    return sum(value.nbytes for value in getattr(record, "__dict__", {}).values() if isinstance(value, np.ndarray))


@contextmanager
def part(name: str) -> Iterator[None]:
    """A part of the call that runs: a span within its span."""
    call, start = _CURRENT.get(), time.time()
    try:
        yield
    finally:
        if call is not None:
            call.log.add(Span(name, start, time.time(), call.number, inner=True))


def union(intervals: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Seconds of [start, end] that one interval or more covers.

    >>> union([(1.0, 3.0), (2.0, 4.0), (6.0, 9.0)], 0.0, 7.0)
    4.0
    """
    covered, reached = 0.0, start
    for left, right in sorted(intervals):
        left, right = max(left, reached), min(right, end)
        if right > left:
            covered, reached = covered + right - left, right
    return covered


class Timeline:
    """Appends spans to a Chrome trace. A resumed run goes on in the same file: the spans of a stopped process stay, since they
    took place, also where the steps are taken again.

    The file is an array of events, one a line. Only `close` writes the bracket at its end, which its readers do without.

    Args:
        path: of the file.
        steps: write no more after so many calls of `add`. None: no limit.
    """

    def __init__(self, path: Path, *, steps: int | None = None) -> None:
        self._path = path
        self._left = steps
        with writing(path):
            text = _whole_lines(path.read_bytes() if path.is_file() else b"")
            self._rows = _rows(text)
            self._file = path.open("wb" if text == b"[" else "r+b")
            self._file.truncate(len(text))
            self._file.seek(0)
            self._file.write(text)

    def add(self, actors: Mapping[str, Sequence[Span]]) -> None:
        """Write the spans of each actor, by its name."""
        if self._left == 0:
            return
        self._left = None if self._left is None else self._left - 1
        events = [event for name, spans in actors.items() for event in self._events(name, spans)]
        start = "" if self._file.tell() == 1 else ","
        with writing(self._path):
            self._file.write((start + ",".join("\n" + json.dumps(event) for event in events)).encode() if events else b"")
            self._file.flush()

    def close(self) -> None:
        """End the array."""
        with writing(self._path):
            self._file.write(b"\n]\n")
            self._file.close()

    def _events(self, name: str, spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
        if name not in self._rows:
            self._rows[name] = row = len(self._rows)
            yield {"ph": "M", "name": "process_name", "pid": row, "args": {"name": name}}
            yield {"ph": "M", "name": "process_sort_index", "pid": row, "args": {"sort_index": row}}
        lanes = _lanes(spans)
        for span in sorted(spans, key=lambda span: (span.start, span.inner)):
            times = {"ts": round(span.start * 1e6), "dur": max(0, round(span.seconds * 1e6))}
            event = {"ph": "X", "name": span.name, "pid": self._rows[name], "tid": lanes.get(span.call, 0), **times}
            yield event | ({"args": dict(span.counts)} if span.counts else {})


def _lanes(spans: Sequence[Span]) -> dict[int, int]:
    """The line of each call within its actor's row, so that calls of one line do not overlap."""
    ends: list[float] = []
    lanes: dict[int, int] = {}
    for span in sorted((span for span in spans if not span.inner), key=lambda span: span.start):
        lane = next((lane for lane, end in enumerate(ends) if end <= span.start), len(ends))
        ends[lane : lane + 1] = [span.end]
        lanes[span.call] = lane
    return lanes


def _whole_lines(text: bytes) -> bytes:
    """The text of a trace up to its last whole event, or of an empty one: a process may have died while it wrote."""
    before, _, last = text.removesuffix(b"\n]\n").rpartition(b"\n")
    try:
        json.loads(last)
    except ValueError:
        return before.rstrip(b",") or b"["
    return before + b"\n" + last


def _rows(text: bytes) -> dict[str, int]:
    """The row of each actor that a trace names."""
    named = (json.loads(line.strip(b",")) for line in text.splitlines() if b'"process_name"' in line)
    return {event["args"]["name"]: event["pid"] for event in named}
