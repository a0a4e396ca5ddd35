"""Several teachers that act as one, and the shards of one teacher."""

import asyncio
from typing import Any

import pytest

from minidist.teachers.pool import Shards, Teachers
from minidist.types import Sampling
from tests.support.fakes import NumberedRole

SAMPLING = Sampling(samples=2, max_new_tokens=1, seed=3)


@pytest.mark.parametrize("kind", [Teachers, Shards])
def test_rollouts_are_dealt_in_turn_and_scores_come_back_in_order(kind: type[Teachers]) -> None:
    members: list[Any] = [NumberedRole(0), NumberedRole(1)]
    rollouts: list[Any] = [7, 8, 9]
    assert asyncio.run(kind(members).score(rollouts)) == [(7, 0), (8, 1), (9, 0)]


@pytest.mark.parametrize(("kind", "writers"), [(Teachers, [0, 1, 0]), (Shards, [0, 0, 0])])
def test_teachers_share_the_prompts_and_shards_all_write_the_same(kind: type[Teachers], writers: list[int]) -> None:
    members: list[Any] = [NumberedRole(0), NumberedRole(1)]
    prompts: list[Any] = [7, 8, 9]
    expected = [(prompt, writer, n, SAMPLING) for prompt, writer in zip(prompts, writers, strict=True) for n in range(2)]
    assert asyncio.run(kind(members).extend(prompts, SAMPLING)) == expected


def test_a_pool_describes_its_first_teacher_and_closes_all() -> None:
    members: list[Any] = [NumberedRole(0), NumberedRole(1)]
    teachers = Teachers(members)
    assert asyncio.run(teachers.describe()) == {"class": "role 0", "actors": 2, "tokens_written": 10}
    asyncio.run(teachers.close())
    assert all(member.closed for member in members)
