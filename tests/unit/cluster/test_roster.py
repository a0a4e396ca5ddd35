"""Pools of which a member dies: the others take its work, or it is waited for, and nothing is done twice."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from minidist.errors import ActorLostError
from minidist.rollout.pool import Engines
from minidist.teachers.pool import Teachers
from minidist.types import Sampling
from tests.support.fakes import NumberedRole
from tests.support.mortal import Place
from tests.unit.teachers.test_pool import Named, rollouts_of

SAMPLING = Sampling(samples=2, max_new_tokens=1, seed=3)
PROMPTS: list[Any] = list(range(40, 49))


class Writer(NumberedRole):
    """Hands on one prompt after another."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.written: list[Any] = []

    async def generate(self, prompts: Any, sampling: Sampling) -> list[Any]:
        self.written += prompts
        return await super().generate(prompts, sampling)

    async def stream(self, prompts: Any, sampling: Sampling) -> AsyncGenerator[tuple[int, list[Any]], None]:
        for index in range(len(prompts)):
            await asyncio.sleep(0)
            yield index, await self.generate([prompts[index]], sampling)


def pool_of(place: Place, count: int, held: int | None = None, *, waits: bool = False) -> Engines:
    members: list[Any] = [place.supervise(f"rollout {number}", Writer, number=number) for number in range(count)]
    return Engines(members, held, waits=waits)


def writers(rollouts: list[Any]) -> list[int]:
    return [number for _, number, sample, _ in rollouts if sample == 0]


async def generated(pool: Engines) -> list[Any]:
    return await pool.generate(PROMPTS, SAMPLING)


async def streamed(pool: Engines) -> list[Any]:
    found = [each async for each in pool.stream(PROMPTS, SAMPLING)]
    assert sorted(index for index, _ in found) == list(range(len(PROMPTS))), "each prompt once"
    return [rollout for _, rollouts in sorted(found, key=lambda each: each[0]) for rollout in rollouts]


@pytest.mark.parametrize("write", [generated, streamed])
@pytest.mark.parametrize("held", [None, 4])
def test_the_others_write_what_a_dead_engine_has_not_and_do_not_wait_for_it(write: Any, held: int | None) -> None:
    async def run() -> None:
        place = Place()
        pool = pool_of(place, 3, held)
        place.gate.clear()
        place.started[1].dies_in = "stream" if held or write is streamed else "generate"
        rollouts = await asyncio.wait_for(write(pool), 5)
        assert [(prompt, sample) for prompt, _, sample, _ in rollouts] == [(p, n) for p in PROMPTS for n in range(2)]
        kept = sum(number == 1 for number in writers(rollouts))
        assert kept == (0 if place.started[1].dies_in == "generate" else 1), "an answer that came is not written again"
        lived = [prompt for process in place.started for prompt in process.role.written if process.lost is None]
        assert len(lived) + kept == len(PROMPTS)
        assert set(writers(await write(pool))) == {0, 2}, "the dead one is not asked"
        place.gate.set()
        await pool.members[1].recovered()
        assert set(writers(await write(pool))) == {0, 1, 2} and len(pool.members) == 3

    asyncio.run(run())


@pytest.mark.parametrize("write", [generated, streamed])
def test_where_bits_are_to_repeat_the_same_engine_writes_the_same_prompts_again(write: Any) -> None:
    async def run() -> None:
        place = Place()
        pool = pool_of(place, 3, waits=True)
        expected = await write(pool)
        place.started[1].dies_in = "stream" if write is streamed else "generate"
        assert await write(pool) == expected and writers(expected) == [0, 1, 2] * 3
        assert place.started[3].role.written == PROMPTS[1::3], "the whole share, in order"

    asyncio.run(run())


@pytest.mark.parametrize("write", [generated, streamed])
def test_the_only_engine_is_waited_for(write: Any) -> None:
    async def run() -> None:
        place = Place()
        pool = pool_of(place, 1, 4)
        place.started[0].die()
        assert writers(await write(pool)) == [0] * 9 and len(place.started) == 2
        place = Place()
        pool = pool_of(place, 2)
        for process in place.started:
            process.die()
        assert len(writers(await write(pool))) == 9

    asyncio.run(run())


def test_the_run_goes_on_without_an_engine_for_which_there_is_no_room_and_not_without_any() -> None:
    async def run() -> None:
        place = Place()
        pool = pool_of(place, 2)
        members: list[Any] = list(pool.members)
        place.room = False
        place.started[0].die()
        assert writers(await generated(pool)) == [1] * 9
        await asyncio.sleep(0)
        assert await pool.figures() == {"mixed/tokens": 11.0}
        assert [member.name for member in pool.members] == ["rollout 1"]  # type: ignore[attr-defined]
        assert place.restarts.figures(members) == {"cluster/rollout_actors": 1.0}
        place.started[1].die()
        with pytest.raises(ActorLostError, match="no room for the rollout 1"):
            await generated(pool)

    asyncio.run(run())


def test_a_pool_that_waits_goes_on_without_an_engine_for_which_there_is_no_room() -> None:
    async def run() -> None:
        place = Place()
        pool = pool_of(place, 2, waits=True)
        place.room = False
        place.started[1].die()
        assert writers(await generated(pool)) == [0] * 9
        assert len(pool.members) == 1

    asyncio.run(run())


def test_an_engine_that_dies_too_often_ends_the_run_though_others_live() -> None:
    async def run() -> None:
        place = Place(restarts=0)
        pool = pool_of(place, 2)
        place.started[1].die()
        await generated(pool)
        await asyncio.sleep(0)
        with pytest.raises(ActorLostError, match=r"rollout 1 was lost 1 times, and cluster.supervision.restarts is 0"):
            await generated(pool)

    asyncio.run(run())


@pytest.mark.parametrize("waits", [False, True])
def test_what_a_dead_teacher_owes_is_scored_once(waits: bool) -> None:
    async def run() -> None:
        place = Place()
        members: list[Any] = [place.supervise(f"teacher {number}", Named, number=number) for number in range(3)]
        teachers = Teachers(members, waits=waits)
        rollouts = rollouts_of(*((number, 3, 1 + number) for number in range(9)))
        expected = await teachers.score(rollouts)
        place.started[2].dies_in = "score"
        found = await teachers.score(rollouts)
        assert [score[:2] for score in found] == [score[:2] for score in expected] == [(n, 1 + n) for n in range(9)]  # type: ignore[index]
        assert {score[2] for score in found} == ({0, 1, 2} if waits else {0, 1})  # type: ignore[index]
        assert not waits or found == expected
        place.started[0].dies_in = "extend"
        prompts: list[Any] = [7, 8, 9]
        assert [each[0] for each in await teachers.extend(prompts, SAMPLING)] == [7, 7, 8, 8, 9, 9]  # type: ignore[index]

    asyncio.run(run())


def test_members_that_are_not_supervised_raise_their_loss() -> None:
    class Dead(NumberedRole):
        async def generate(self, prompts: Any, sampling: Sampling) -> list[Any]:
            raise ActorLostError("the rollout 1 died", "rollout 1")

    members: list[Any] = [NumberedRole(0), Dead(1)]
    with pytest.raises(ActorLostError, match="the rollout 1 died"):
        asyncio.run(Engines(members).generate(PROMPTS, SAMPLING))
