"""A Ray cluster that has died or hangs is found, and what waits for it is cancelled."""

import asyncio
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from minidist.cluster import health
from minidist.cluster.health import RayHealth
from minidist.config.cluster import ClusterConfig
from minidist.errors import ClusterLostError, RoleError


def standing(monkeypatch: pytest.MonkeyPatch, nodes: Any = None, **fields: Any) -> RayHealth:
    monkeypatch.setattr(health.ray, "nodes", nodes or (lambda: [{"Alive": True}]))
    monkeypatch.setattr(health, "_LOOK_S", 0.02)
    monkeypatch.setattr(health, "_GIVEN_UP_S", 0.1)
    return RayHealth(ClusterConfig.model_validate({"supervision": {"heartbeat_s": 0.02, "heartbeat_timeout_s": 0.2}} | fields))


async def needing(checked: RayHealth, work: Any) -> Any:
    async with checked.required():
        return await work


def test_work_in_a_cluster_that_stands_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asyncio.run(needing(standing(monkeypatch), asyncio.sleep(0.3, "done"))) == "done"


def test_a_process_of_ray_that_dies_cancels_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    checked = standing(monkeypatch)
    checked._servers = {psutil.Process(process.pid): "node (raylet)"}

    async def scene() -> None:
        asyncio.get_running_loop().call_later(0.1, process.kill)
        await needing(checked, asyncio.sleep(60))

    with pytest.raises(ClusterLostError, match=r"Ray's node \(raylet\) has died"):
        asyncio.run(scene())
    process.wait()


def test_an_actor_that_fails_with_its_cluster_is_a_lost_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The death of an actor is often known first."""
    process = subprocess.Popen(["true"])
    checked = standing(monkeypatch)
    checked._servers = {psutil.Process(process.pid): "node (raylet)"}
    monkeypatch.setattr(health, "_LOOK_S", 60)
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)

    async def fails() -> None:
        raise RoleError("the learner died")

    monkeypatch.setattr(RayHealth, "_watch", lambda self: asyncio.sleep(60))
    with pytest.raises(ClusterLostError, match=r"node \(raylet\) has died"):
        asyncio.run(needing(checked, fails()))
    process.wait()
    checked._servers = {}
    with pytest.raises(RoleError, match="the learner died"):
        asyncio.run(needing(checked, fails()))


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_a_control_store_that_does_not_answer_is_lost(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    where = " at 10.0.0.1:6379" if address else ""
    checked = standing(monkeypatch, lambda: time.sleep(3), address=address)
    began = time.monotonic()
    with pytest.raises(ClusterLostError, match=rf"Ray's control store{where} has not answered for 0.2 s"):
        asyncio.run(needing(checked, asyncio.sleep(60)))
    assert time.monotonic() - began < 2, "the thread that asks is not waited for"


def test_a_control_store_that_cannot_be_asked_is_asked_again_and_then_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def refused() -> list[dict[str, Any]]:
        asked.append(time.monotonic())
        if len(asked) == 3:
            return [{"Alive": True}]
        raise RuntimeError("no connection")

    with pytest.raises(ClusterLostError, match=r"has not answered for 0\.2 s"):
        asyncio.run(needing(standing(monkeypatch, refused), asyncio.sleep(60)))
    assert asked[-1] - asked[2] > 0.15, "an answer begins the wait anew"


def test_a_node_that_ray_counts_as_dead_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterLostError, match="Ray's node has given no sign of life"):
        asyncio.run(needing(standing(monkeypatch, lambda: [{"Alive": False}]), asyncio.sleep(60)))


def test_work_that_ends_what_it_is_doing_when_cancelled_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append("once")
            await asyncio.sleep(60)

    with pytest.raises(ClusterLostError):
        asyncio.run(needing(standing(monkeypatch, lambda: [{"Alive": False}]), stubborn()))
    assert cancelled == ["once"]


def test_cancelled_work_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        task = asyncio.ensure_future(needing(standing(monkeypatch), asyncio.sleep(60)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())
