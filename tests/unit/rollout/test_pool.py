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
