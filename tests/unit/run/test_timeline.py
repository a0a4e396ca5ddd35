"""Spans of calls, and the Chrome trace that is written of them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from minidist.concurrency import Worker
from minidist.run import timeline
from minidist.run.timeline import Received, Span, SpanLog, Timeline, count, part, union


class Time:
    """A clock that moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    moved = Time()
    monkeypatch.setattr(timeline, "time", moved)
    return moved


def test_a_call_has_its_times_its_parts_and_its_counts(clock: Time) -> None:
    log = SpanLog()
    with log.call("score"):
        clock.now += 1
        with part("forward"):
            clock.now += 2
            count(tokens=5)
        count(tokens=7, rows=1)
    count(tokens=1000)  # outside of any call
    inner, outer = log.take().done
    assert (inner.name, inner.start, inner.end, inner.inner) == ("forward", 101, 103, True)
    assert (outer.name, outer.start, outer.end, outer.inner) == ("score", 100, 103, False)
    assert inner.call == outer.call and outer.counts == {"tokens": 12, "rows": 1}
    assert not log.take().done, "what was taken is not taken again"


def test_a_call_under_way_is_running_and_later_done(clock: Time) -> None:
    log = SpanLog()
    with log.call("generate"):
        clock.now += 3
        taken = log.take()
        assert not taken.done and taken.busy == [(100, 103)]
        clock.now += 1
    taken = log.take()
    assert not taken.running and taken.busy == [(100, 104)]


def test_a_call_that_fails_is_done(clock: Time) -> None:
    log = SpanLog()
    with pytest.raises(ZeroDivisionError), log.call("score"):
        clock.now += 1
        raise ZeroDivisionError
    assert [span.seconds for span in log.take().done] == [1]


def test_counts_of_calls_at_the_same_time_stay_apart_also_in_the_worker() -> None:
    log, worker = SpanLog(), Worker("test")

    async def one(amount: int) -> None:
        with log.call(f"call {amount}"):
            await worker.run(lambda: count(tokens=amount))
            await asyncio.sleep(0)
            await worker.run(lambda: count(tokens=amount))

    async def all_of_them() -> None:
        await asyncio.gather(*map(one, (1, 10, 100)))

    asyncio.run(all_of_them())
    worker.close()
    assert {span.name: span.counts["tokens"] for span in log.take().done} == {"call 1": 2, "call 10": 20, "call 100": 200}


def test_a_log_that_nobody_takes_forgets_its_oldest_calls() -> None:
    log = SpanLog()
    for number in range(20_010):
        with log.call(f"{number}"):
            pass
    done = log.take().done
    assert (len(done), done[0].name) == (20_000, "10")


def test_a_caller_knows_the_calls_that_have_ended_and_those_it_waits_for(clock: Time) -> None:
    log, received = SpanLog(), Received()
    with received.call("1", "score"):
        with log.call("score"):
            clock.now += 2
        clock.now += 1  # on its way
        assert received.take().busy == [(100, 103)]
    received.add(log.take())
    with received.call("2", "describe"):
        clock.now += 4
        taken = received.take()
    assert [(span.name, span.start, span.end) for span in taken.done] == [("score", 100, 102)]
    assert taken.busy == [(100, 102), (103, 107)] and taken.pid and taken.host
    assert not received.take().busy


def test_union_counts_overlaps_once_and_clips() -> None:
    intervals = [(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]
    assert union(intervals, 0, 10) == 4
    assert union(intervals, 1, 5.5) == 2.5
    assert union([], 0, 10) == union(intervals, 7, 10) == 0


def events(path: Path) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text()) if event["ph"] == "X"]


def test_the_trace_is_json_with_a_row_for_each_actor(tmp_path: Path) -> None:
    trace = Timeline(tmp_path / "timeline.json")
    trace.add({"driver": [Span("generate", 1.0, 2.5, 0)], "rollout 0": []})
    trace.add({"driver": [Span("update", 3.0, 4.0, 1)], "rollout 0": [Span("generate", 1.1, 2.4, 0, counts={"tokens": 7})]})
    trace.close()
    written = json.loads((tmp_path / "timeline.json").read_text())
    assert {e["args"]["name"]: e["pid"] for e in written if e["name"] == "process_name"} == {"driver": 0, "rollout 0": 1}
    shown = [(e["pid"], e["name"], e["ts"], e["dur"], e.get("args")) for e in events(tmp_path / "timeline.json")]
    assert shown == [
        (0, "generate", 1_000_000, 1_500_000, None),
        (0, "update", 3_000_000, 1_000_000, None),
        (1, "generate", 1_100_000, 1_300_000, {"tokens": 7}),
    ]


def test_calls_that_overlap_have_lines_of_their_own_and_parts_stay_with_their_call(tmp_path: Path) -> None:
    trace = Timeline(tmp_path / "timeline.json")
    spans = [Span("a", 0, 4, 0), Span("b", 1, 2, 1), Span("inside b", 1, 1.5, 1, inner=True), Span("c", 2, 3, 2)]
    trace.add({"teacher": spans})
    trace.close()
    assert {e["name"]: e["tid"] for e in events(tmp_path / "timeline.json")} == {"a": 0, "b": 1, "inside b": 1, "c": 1}


@pytest.mark.parametrize("end", ["closed", "killed", "torn"])
def test_a_resumed_run_goes_on_in_its_trace(tmp_path: Path, end: str) -> None:
    path = tmp_path / "timeline.json"
    first = Timeline(path)
    first.add({"driver": [Span("generate", 1, 2)], "teacher": [Span("score", 2, 3)]})
    if end == "closed":
        first.close()
    if end == "torn":
        path.write_text(path.read_text() + ',\n{"ph": "X", "args": {"tokens": 1}')
    second = Timeline(path)
    second.add({"teacher": [Span("score", 12, 13)], "learner": [Span("update", 13, 14)]})
    second.close()
    rows = {event["args"]["name"]: event["pid"] for event in json.loads(path.read_text()) if event["name"] == "process_name"}
    assert list(rows) == ["driver", "teacher", "learner"] and len(set(rows.values())) == 3
    found = [(event["pid"], event["ts"]) for event in events(path)]
    assert found == [(rows["driver"], 1e6), (rows["teacher"], 2e6), (rows["teacher"], 12e6), (rows["learner"], 13e6)]


@pytest.mark.parametrize("text", ["", "[", "[\n{"])
def test_a_trace_without_a_whole_event_begins_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "timeline.json"
    path.write_text(text)
    trace = Timeline(path)
    trace.add({"driver": [Span("generate", 1, 2)]})
    trace.close()
    assert len(events(path)) == 1


def test_a_trace_ends_after_its_steps(tmp_path: Path) -> None:
    trace = Timeline(tmp_path / "timeline.json", steps=2)
    for second in range(4):
        trace.add({"driver": [Span("generate", second, second + 1)]})
    trace.close()
    assert len(events(tmp_path / "timeline.json")) == 2
