"""Roles in this process are timed as those in actors are."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from minidist.cluster.cluster import Cluster
from minidist.cluster.local import Local
from minidist.cluster.remote import Host
from minidist.concurrency import Worker
from minidist.config.cluster import ClusterConfig
from minidist.run.timeline import count


class Role:
    """Two verbs, and a stream of results."""

    fixed = 3

    async def double(self, number: int, *, more: int = 0) -> int:
        count(numbers=1)
        return 2 * number + more

    async def numbers(self) -> AsyncIterator[int]:
        for number in range(3):
            yield number

    def plain(self) -> str:
        return "plain"

    async def close(self) -> None:
        pass


def test_a_local_role_is_the_role_and_its_calls_are_timed() -> None:
    async def run() -> None:
        local = Local("teacher")
        await local.start(Role)
        assert await local.double(2, more=1) == 5
        assert [number async for number in local.numbers()] == [0, 1, 2]
        assert (local.fixed, local.plain(), getattr(local, "keep", None)) == (3, "plain", None)
        with pytest.raises(AttributeError, match="Role"):
            local.no_such_verb  # noqa: B018
        done = local.calls().done
        assert [(span.name, dict(span.counts)) for span in done] == [("start", {}), ("double", {"numbers": 1}), ("numbers", {})]

    asyncio.run(run())


def test_an_actor_gives_the_same_calls() -> None:
    async def run() -> None:
        host = Host()
        await host.call("0", "start", Role)
        result, calls = await host.answer("1", "double", 2, more=1)
        assert result == 5
        done = calls.done
        assert [(span.name, dict(span.counts)) for span in done] == [("start", {}), ("double", {"numbers": 1})]
        assert all(span.start <= span.end for span in done)

    asyncio.run(run())


def test_a_question_beside_a_role_is_answered_in_a_thread_that_does_not_stay() -> None:
    """The rate of matrix products is measured so: helpers that OpenMP keeps for it would slow the role's own thread down."""

    async def run() -> None:
        host, local = Host(), Local("teacher")
        await host.call("0", "start", Role)
        await local.start(Role)
        answers = [await host.call("1", "ask", threading.current_thread), await local.ask(threading.current_thread)]
        for thread in answers:
            assert thread is not threading.current_thread()
            thread.join(10)
            assert not thread.is_alive()

    asyncio.run(run())


class Working:
    """Its verb runs in the thread of its worker."""

    def __init__(self) -> None:
        self._worker = Worker("working")

    async def thread(self) -> threading.Thread:
        return await self._worker.run(threading.current_thread)

    async def close(self) -> None:
        self._worker.close()


@pytest.mark.parametrize("at_once", [{}, {"rollout": 2, "teacher": 2}], ids=["turns", "overlap"])
def test_local_roles_that_take_turns_compute_in_one_thread(at_once: dict[str, int], tmp_path: Path) -> None:
    async def run() -> None:
        async with Cluster(ClusterConfig(roles="local"), tmp_path, at_once=at_once) as cluster:
            engine, teacher = await cluster.host("rollout", Working), await cluster.host("teacher", Working)
            thread = await teacher.thread()
            assert (await engine.thread() is thread) == (not at_once)
            await cluster.dismiss(engine)
            assert await teacher.thread() is thread, "a role that ends leaves the others their thread"
            elsewhere = Working()
            assert await elsewhere.thread() is not thread, "only roles of the cluster share it"
            await elsewhere.close()
        thread.join(10)
        assert not thread.is_alive()

    asyncio.run(run())


def test_a_cluster_names_its_local_roles(tmp_path: Path) -> None:
    async def run() -> None:
        async with Cluster(ClusterConfig(roles="local"), tmp_path) as cluster:
            await cluster.host("rollout", Role)
            learner = await cluster.host("learner", Role)
            await learner.double(1)
            calls = cluster.calls()
            assert [(name, [span.name for span in each.done]) for name, each in calls.items()] == [
                ("rollout", ["start"]),
                ("learner", ["start", "double"]),
            ]
            await cluster.dismiss(learner)
            assert list(cluster.calls()) == ["rollout"]

    asyncio.run(run())
