"""What a user sees while roles start."""

import asyncio
import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from minidist.cluster.cluster import Cluster
from minidist.cluster.starts import Starts
from minidist.concurrency import together
from minidist.config.cluster import ClusterConfig
from minidist.run.tracking import log


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, "minidist")
    return caplog


class FakeTeacher:
    async def close(self) -> None: ...


def test_each_role_is_one_line_of_the_log_when_it_is_ready(lines: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async def run() -> None:
        async with Cluster(ClusterConfig(roles="local"), tmp_path) as cluster:
            await cluster.host("teacher", FakeTeacher)
            assert lines.messages == ["teacher ready after 0 s"]

    asyncio.run(run())


def test_a_role_is_ready_when_all_its_actors_are(lines: pytest.LogCaptureFixture) -> None:
    starts = Starts(Console(file=io.StringIO()))
    with starts.of("rollout"), starts.of("learner"):
        with starts.of("rollout"):
            pass
        assert starts.line().plain == "rollout starting 0 s   learner starting 0 s"
    assert lines.messages == ["learner ready after 0 s", "rollout ready after 0 s"]


def test_a_terminal_shows_who_is_starting_and_who_is_ready(lines: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    starts = Starts(Console(file=screen, force_terminal=True, width=100, color_system=None))

    async def start(role: str, seconds: float) -> None:
        with starts.of(role):
            await asyncio.sleep(seconds)

    asyncio.run(together([start("rollout", 0.6), start("teacher", 1.6)]))
    shown = screen.getvalue()
    assert "rollout starting 0 s   teacher starting 0 s" in shown
    assert "rollout ready 1 s   teacher starting 1 s" in shown
    assert lines.messages == ["rollout ready after 1 s", "teacher ready after 2 s"]


def test_a_role_that_fails_is_never_called_ready(lines: pytest.LogCaptureFixture) -> None:
    starts = Starts(Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(ValueError, match="no weights"), starts.of("learner"):
        raise ValueError("no weights")
    assert lines.messages == []
    with starts.of("learner"):  # the live line of the failed start has ended
        assert starts.line().plain == "learner starting 0 s"
