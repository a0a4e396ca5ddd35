"""Signs of life: which silence means that an actor hangs, and which does not."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest

from minidist.cluster.heartbeat import Heartbeats
from minidist.cluster.killing import end_process
from minidist.cluster.scratch import start_time
from minidist.config.supervision import SupervisionConfig
from minidist.errors import ActorLostError


class Beating:
    """An actor that answers while `hangs` is false."""

    def __init__(self, name: str) -> None:
        self.name, self.hangs, self.starting, self.asked = name, False, 0, 0
        self.lost: ActorLostError | None = None

    async def beat(self) -> None:
        self.asked += 1
        while self.hangs:
            await asyncio.sleep(0)

    def lose(self, reason: str) -> ActorLostError:
        self.lost = ActorLostError(f"the {self.name} {reason}", self.name)
        return self.lost


async def looked(actors: list[Beating], times: int, passed: float = 5.0) -> list[str]:
    """The actors that were killed after so many looks."""
    killed: list[str] = []

    async def kill(actor: Any) -> None:
        killed.append(actor.name)

    beats = Heartbeats(SupervisionConfig(heartbeat_s=5, heartbeat_timeout_s=20), lambda: actors, kill)
    for _ in range(times):
        await beats.look(passed)
        for _ in range(3):
            await asyncio.sleep(0)
    return killed


def test_an_actor_without_a_sign_of_life_is_killed_after_the_limit_and_no_other() -> None:
    async def run() -> None:
        actors = [Beating("rollout 0"), Beating("rollout 1"), Beating("teacher")]
        actors[1].hangs = True
        assert await looked(actors, 4) == []
        assert await looked(actors, 6) == ["rollout 1"]
        assert actors[1].asked == 2, "a question that waits for its answer is not asked again"
        assert "the rollout 1 hangs: it has given no sign of life for 20 s" in str(actors[1].lost)
        assert actors[0].lost is None and actors[0].asked == 10

    asyncio.run(run())


def test_an_actor_that_starts_is_not_asked() -> None:
    async def run() -> None:
        actor = Beating("rollout")
        actor.hangs, actor.starting = True, 1
        assert await looked([actor], 20) == [] and actor.asked == 0

    asyncio.run(run())


def test_an_answer_begins_the_wait_anew() -> None:
    async def run() -> None:
        actor = Beating("rollout")
        for _ in range(4):
            actor.hangs = True
            assert await looked([actor], 4) == []
            actor.hangs = False
            await asyncio.sleep(0)

    asyncio.run(run())


def test_time_in_which_the_driver_did_nothing_is_no_silence_of_an_actor() -> None:
    """As when the machine was suspended, or the driver has computed for minutes."""

    async def run() -> None:
        actor, killed, clock = Beating("rollout"), list[str](), [0.0]
        actor.hangs = True

        def now() -> float:
            clock[0] += 100.0
            return clock[0]

        async def kill(actor: Any) -> None:
            killed.append(actor.name)

        config = SupervisionConfig(heartbeat_s=0.01, heartbeat_timeout_s=0.05)
        task = asyncio.create_task(Heartbeats(config, lambda: [actor], kill, now).run())
        await asyncio.sleep(0.025)
        assert killed == [] and actor.asked == 1
        while not killed:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


_PARENT = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_stopped_process_and_its_children_are_ended(stopped: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT]) as process:
        while not (children := psutil.Process(process.pid).children()):
            pass
        if stopped:
            os.kill(process.pid, signal.SIGSTOP)
        end_process(process.pid, "another start")
        assert process.poll() is None and children[0].is_running()
        end_process(process.pid, start_time(process.pid))
        assert start_time(process.pid) is None and not children[0].is_running()
