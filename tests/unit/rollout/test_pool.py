"""Several engines that act as one."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from minidist.rollout.answers import in_order
from minidist.rollout.pool import Engines
from minidist.types import Sampling
from tests.support.fakes import NumberedRole


@pytest.fixture
def pool() -> Engines:
    members: list[Any] = [NumberedRole(0), NumberedRole(1)]
    return Engines(members)


def test_prompts_are_dealt_in_turn_and_rollouts_come_back_in_order(pool: Engines) -> None:
    sampling, prompts = Sampling(samples=2, max_new_tokens=1, seed=3), [7, 8, 9]
    dealt = [(prompt, index % 2, sample, sampling) for index, prompt in enumerate(prompts) for sample in range(2)]
    assert asyncio.run(pool.generate(prompts, sampling)) == dealt  # type: ignore[arg-type,comparison-overlap]
    assert asyncio.run(pool.score(prompts)) == [(7, 0), (8, 1), (9, 0)]  # type: ignore[arg-type,comparison-overlap]


def test_weights_reach_every_engine(pool: Engines) -> None:
    asyncio.run(pool.load("weights"))  # type: ignore[arg-type]
    assert [engine.loaded for engine in pool.members] == ["weights"] * 2  # type: ignore[attr-defined]
    assert asyncio.run(pool.version()) == 7


def test_figures_and_written_tokens_are_sums(pool: Engines) -> None:
    assert asyncio.run(pool.figures()) == {"mixed/tokens": 21.0}
    assert asyncio.run(pool.describe()) == {"class": "role 0", "actors": 2, "tokens_written": 21}


def test_closing_the_pool_closes_every_engine(pool: Engines) -> None:
    asyncio.run(pool.close())
    assert all(engine.closed for engine in pool.members)  # type: ignore[attr-defined]


class Slow(NumberedRole):
    """Hands its answers on in reverse order, after a while that depends on its number."""

    async def stream(self, prompts: Any, sampling: Sampling) -> AsyncGenerator[tuple[int, list[Any]], None]:
        for index in reversed(range(len(prompts))):
            await asyncio.sleep(0.01 * (self.number + 1))
            yield index, await self.generate([prompts[index]], sampling)


def test_a_stream_has_the_rollouts_of_generate_whatever_their_order() -> None:
    async def run() -> None:
        pool, sampling = Engines([Slow(0), Slow(1), NumberedRole(2)]), Sampling(samples=2, max_new_tokens=1)
        prompts: list[Any] = list(range(40, 48))
        expected = await pool.generate(prompts, sampling)
        found = [each async for each in pool.stream(prompts, sampling)]
        assert [index for index, _ in found] != sorted(index for index, _ in found)
        by_index = dict(found)
        assert [rollout for index in range(8) for rollout in by_index[index]] == expected
        assert await in_order(pool.stream(prompts, sampling), 8) == expected

    asyncio.run(run())


class Timed(NumberedRole):
    """Writes one prompt after another; a prompt takes as many ticks as its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.turn = asyncio.Lock()
        self.answered: list[int] = []
        self.most = 0
        self.open = 0

    async def stream(self, prompts: Any, sampling: Sampling) -> AsyncGenerator[tuple[int, list[Any]], None]:
        self.open += len(prompts) * sampling.samples
        self.most = max(self.most, self.open)
        for index, prompt in enumerate(prompts):
            async with self.turn:
                for _ in range(prompt):
                    await asyncio.sleep(0)
            self.answered.append(prompt)
            self.open -= sampling.samples
            yield index, await self.generate([prompt], sampling)


def test_engines_with_more_work_than_they_hold_take_it_from_one_queue() -> None:
    """Dealt in turn, the first engine would get all long answers."""
    prompts: list[Any] = [400, 1] * 40
    sampling = Sampling(samples=2, max_new_tokens=1)

    async def answers(held: int | None) -> tuple[list[Any], list[Timed]]:
        engines = [Timed(0), Timed(1)]
        pool = Engines(engines, held)  # type: ignore[arg-type]
        return [each async for each in pool.stream(prompts, sampling)], engines

    found, (first, second) = asyncio.run(answers(held=16))
    assert sorted(index for index, _ in found) == list(range(80)), "every prompt once"
    assert all(rollouts[0][0] == prompts[index] and len(rollouts) == 2 for index, rollouts in found)
    work = sum(first.answered), sum(second.answered)
    assert 0.6 < work[0] / work[1] < 1.6, "about as much work each"
    assert max(first.most, second.most) <= 16 * 5 // 4
    _, (first, second) = asyncio.run(answers(held=None))
    assert (sum(first.answered), sum(second.answered)) == (400 * 40, 40)
    rollouts = asyncio.run(Engines([Timed(0), Timed(1)], 16).generate(prompts, sampling))  # type: ignore[arg-type]
    assert [rollout[0] for rollout in rollouts] == [prompt for prompt in prompts for _ in range(2)]  # type: ignore[index]


def test_a_queue_that_is_given_up_ends_the_work_of_all_engines() -> None:
    async def run() -> None:
        engines = [Timed(0), Timed(1)]
        pool = Engines(engines, 4)  # type: ignore[arg-type]
        prompts: list[Any] = [3] * 60
        async for _ in pool.stream(prompts, Sampling(samples=1, max_new_tokens=1)):
            break
        done = [len(engine.answered) for engine in engines]
        for _ in range(50):
            await asyncio.sleep(0)
        assert [len(engine.answered) for engine in engines] == done

    asyncio.run(run())
