"""Several teachers that act as one, and the shards of one teacher."""

import asyncio
import logging
from typing import Any

import numpy as np
import pytest

import minidist.teachers.pool as module
from minidist.teachers.pool import Shards, Teachers
from minidist.types import Prompt, Rollout, Sampling
from tests.support.fakes import NumberedRole

SAMPLING = Sampling(samples=2, max_new_tokens=1, seed=3)


def rollouts_of(*lengths: tuple[int, int, int]) -> list[Rollout]:
    """Rollouts from the number, the length and the answer's length of their prompts."""
    prompts = {number: Prompt(number, np.full(length, number), "") for number, length, _ in lengths}
    return [Rollout.written(prompts[number], [1] * answer, None, version=0, stopped=True) for number, _, answer in lengths]


class Score(tuple[int, ...]):
    """Names what was scored."""

    nbytes = 4


class Named(NumberedRole):
    """A teacher whose scores name what it scored."""

    async def score(self, rollouts: Any) -> Any:
        return [Score((each.prompt.row, len(each.tokens), self.number)) for each in rollouts]


@pytest.mark.parametrize("kind", [Teachers, Shards])
def test_teachers_score_as_many_tokens_and_the_answers_to_one_prompt_together(kind: type[Teachers]) -> None:
    members: list[Any] = [Named(0), Named(1)]
    like = rollouts_of((7, 3, 9), (8, 3, 1), (7, 3, 1), (8, 3, 9))
    assert asyncio.run(kind(members).score(like)) == [(7, 9, 0), (8, 1, 1), (7, 1, 0), (8, 9, 1)]
    uneven = rollouts_of((5, 2, 20), (6, 2, 8), (7, 2, 6), (8, 2, 2))
    assert asyncio.run(kind(members).score(uneven)) == [(5, 20, 0), (6, 8, 1), (7, 6, 1), (8, 2, 1)]


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


class Waiting(Named):
    """A teacher whose server is busy while it scores."""

    retries = 0

    async def score(self, rollouts: Any) -> Any:
        self.retries += 3
        await asyncio.sleep(0.2)
        return await super().score(rollouts)

    async def describe(self) -> dict[str, object]:
        return {"retries": self.retries, "paused_s": 2.0, "last_error": "503 busy"}


def test_a_teacher_that_waits_for_its_server_is_one_line_for_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.02)
    members: list[Any] = [Waiting(0), Named(1)]
    rollouts = rollouts_of((7, 1, 1), (8, 1, 1))

    async def twice() -> None:
        teachers = Teachers(members)
        await teachers.score(rollouts)
        await teachers.score(rollouts)

    with caplog.at_level(logging.WARNING, "minidist"):
        asyncio.run(twice())
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[2].split()[0] for line in lines] == ["3", "6"]
    assert lines[0].endswith("requests sent again so far, pauses of 2 s in all; the last error: 503 busy")


def test_calls_of_shards_follow_one_another() -> None:
    """A collection may be scored while the next is written, by the same partitioned model."""
    log: list[str] = []

    class Rank:
        async def score(self, rollouts: Any) -> Any:
            log.append("score")
            await asyncio.sleep(0.001)
            log.append("scored")
            return [Score((each.prompt.row,)) for each in rollouts]

        async def extend(self, prompts: Any, sampling: Sampling) -> Any:
            log.append("extend")
            await asyncio.sleep(0.001)
            log.append("extended")
            return list(prompts)

    async def both() -> None:
        shards = Shards([Rank(), Rank()])  # type: ignore[list-item]
        await asyncio.gather(shards.score(rollouts_of((1, 1, 1), (2, 1, 1))), shards.extend([], SAMPLING))

    asyncio.run(both())
    assert log == ["score"] * 2 + ["scored"] * 2 + ["extend"] * 2 + ["extended"] * 2
