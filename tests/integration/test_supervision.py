"""Actors that are killed or stopped: real processes, which are started again, and a run that ends as an undisturbed one."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minidist.cluster.heartbeat import Heartbeats
from minidist.cluster.killing import kill
from minidist.cluster.scratch import start_time
from minidist.config.supervision import SupervisionConfig
from minidist.data.batching import collate
from minidist.roles.make import RoleContext, make_engine, make_learner, make_teacher
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.rollout.pool import Engines
from minidist.teachers.pool import Teachers
from minidist.types import Batch, Sampling
from tests.integration.conftest import Stack, engine_arguments, learner_arguments, settings
from tests.integration.test_equalities import EXACT, texts
from tests.integration.test_ranks import weights_of
from tests.support.config import teacher_config

SAMPLING = Sampling(samples=2, max_new_tokens=24, seed=3)
STEPS = 3


@pytest.fixture
def supervised(stack: Stack) -> Iterator[tuple[Engines, Teachers]]:
    """The session's engines and teachers, of which lost ones are started again and take their places in the session."""
    scoring = {"context": RoleContext(stack.renderer), "config": teacher_config(model=str(stack.teacher_path))}
    engines: list[Any] = [
        stack.cluster.supervise([engine], make_engine, engine_arguments(stack, stack.student))
        for engine in stack.engines.members
    ]
    teachers: list[Any] = [stack.cluster.supervise([each], make_teacher, scoring) for each in stack.teachers.members]
    yield Engines(engines, waits=True), Teachers(teachers, waits=True)
    for pool, members in ((stack.engines, engines), (stack.teachers, teachers)):
        for place, member in enumerate(members):
            pool.members[place] = stack.run(member.recovered())
            stack.cluster.supervised.remove(member)


async def process_of(member: Any) -> int:
    """The id of a member's process."""
    return await member.role.ask(os.getpid)


async def signalled(member: Any, call: Awaitable[Any], how: signal.Signals, after_s: float) -> Any:
    """The result of a call in the midst of which a member's process gets a signal."""
    pid = await process_of(member)
    task = asyncio.ensure_future(call)
    await asyncio.sleep(after_s)
    assert not task.done(), "it was over before it could be disturbed"
    os.kill(pid, how)
    return await task


Disturb = Callable[[int, str, Any, Awaitable[Any]], Awaitable[Any]]


def trained(stack: Stack, engines: Engines, teachers: Teachers, disturb: Disturb) -> dict[str, np.ndarray]:
    """The weights after a few steps of the loop from the same start; `disturb` awaits each call of a pool."""
    prompts, transfer = stack.prompts(texts(48)), ObjectStoreTransfer(EXACT)

    async def run() -> None:
        await stack.learner.start(make_learner, **learner_arguments(stack, settings(lr=0.5)))
        await transfer.publish(stack.learner, engines.members)
        for step in range(STEPS):
            sampling = replace(SAMPLING, seed=step)
            rollouts = await disturb(step, "write", engines, engines.generate(prompts, sampling))
            assert [(each.prompt.row, each.sample) for each in rollouts] == [(row, n) for row in range(48) for n in range(2)]
            scores = await disturb(step, "score", teachers, teachers.score(rollouts))
            update = await stack.learner.update(Batch(step, ((collate("main", rollouts, scores, objective="main"),),)))
            assert update.version == step + 1
            await disturb(step, "publish", engines, transfer.publish(stack.learner, engines.members))
            assert await engines.score([[2, 5, 9, 4]] * 2) == [(await engines.members[0].score([[2, 5, 9, 4]]))[0]] * 2

    stack.run(run())
    return weights_of(stack.learner, stack)


@pytest.mark.timeout(300)
def test_a_run_whose_engine_and_teacher_are_killed_and_stopped_ends_with_the_weights_of_an_undisturbed_one(
    stack: Stack, supervised: tuple[Engines, Teachers]
) -> None:
    """Its engine is killed as it writes, one teacher is killed as it scores, the other is stopped."""
    engines, teachers = supervised

    async def leave(step: int, verb: str, pool: Any, call: Awaitable[Any]) -> Any:
        return await call

    async def disturb(step: int, verb: str, pool: Any, call: Awaitable[Any]) -> Any:
        if (step, verb) == (1, "write"):
            return await signalled(pool.members[1], call, signal.SIGKILL, 0.05)
        if (step, verb) == (0, "score"):
            return await signalled(pool.members[1], call, signal.SIGKILL, 0.0)
        if (step, verb) == (2, "score"):
            config = SupervisionConfig(heartbeat_s=0.2, heartbeat_timeout_s=2)
            beating = asyncio.create_task(Heartbeats(config, lambda: [pool.members[0].role], kill).run())
            await asyncio.sleep(0.5)
            pid = await process_of(pool.members[0])
            started, began = start_time(pid), time.monotonic()
            try:
                found = await signalled(pool.members[0], call, signal.SIGSTOP, 0.0)
            finally:
                beating.cancel()
            assert start_time(pid) != started, "the stopped process has ended"
            assert 2 <= time.monotonic() - began < 60
            return found
        return await call

    expected = trained(stack, engines, teachers, leave)
    before = dict(stack.cluster.restarts.summary().get("supervision", {}).get("restarts", {}))
    found = trained(stack, engines, teachers, disturb)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    restarts = stack.cluster.restarts.summary()["supervision"]["restarts"]
    lost = [engines.members[1], teachers.members[1], teachers.members[0]]
    assert all(restarts[each.name] == before.get(each.name, 0) + 1 for each in lost)  # type: ignore[attr-defined]


def test_an_engine_that_is_killed_in_a_publication_gets_whole_weights(
    stack: Stack, supervised: tuple[Engines, Teachers]
) -> None:
    """A tiny model is swapped too fast to be hit from outside: the process ends itself as it takes the weights."""
    engines, _ = supervised
    dying: Any = engines.members[1]

    async def run() -> None:
        await dying.role.ask(_die_in_reload)
        transfer = ObjectStoreTransfer(EXACT)
        assert await transfer.publish(stack.learner, engines.members) < EXACT
        await dying.recovered()
        sequences = [[2, 5, 9, 4, 11, 3]]
        assert await dying.score(sequences) == await engines.members[0].score(sequences)

    stack.run(run())


def _die_in_reload() -> None:
    """From now on, this process dies in the midst of new weights."""
    from minidist.rollout.vllm import reload

    def dies(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    reload.replace_weights = dies
