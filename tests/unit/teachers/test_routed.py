"""Several teachers: each row is scored by its own, in order, or by all of them as a mixture."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minidist.errors import RoleError
from minidist.teachers.pool import Teachers
from minidist.teachers.routed import RoutedTeachers
from minidist.types import KeptScores, MixedScores, Payload, Prompt, Rollout, Sampling, TeacherScores, members_of
from tests.support.tiny import random_rollouts

NAMES = ("maths", "code", "maths", "maths", "code")


class Named:
    """A teacher whose scores and texts show its number, and which rows it was given; it may die."""

    def __init__(self, number: int, payload: Payload) -> None:
        self.number, self.payload = number, payload
        self.seen: list[int] = []
        self.dead = False

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        self.seen += [rollout.prompt.row for rollout in rollouts]
        return [self._scores(rollout) for rollout in rollouts]

    def _scores(self, rollout: Rollout) -> TeacherScores:
        values = np.full(len(rollout.tokens), -(self.number + rollout.prompt.row / 10), dtype=np.float32)
        return (
            TeacherScores(self.payload, hidden=values[:, None])
            if self.payload == "hidden"
            else TeacherScores(self.payload, values)
        )

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        jobs = sampling.jobs(prompts)
        return [Rollout.written(p, [self.number, n], None, version=0, stopped=True, sample=n) for p, n in jobs]

    async def describe(self) -> dict[str, object]:
        if self.dead:
            raise RoleError("it died")
        return {"class": "Named", "number": self.number}

    async def close(self) -> None: ...


def rollouts() -> list[Rollout]:
    drawn = random_rollouts([(3, 4), (1, 2), (2, 3), (2, 1), (4, 2)])
    return [replace(each, prompt=replace(each.prompt, teacher=name)) for each, name in zip(drawn, NAMES, strict=True)]


def routed(*payloads: Payload, heads: dict[str, str] | None = None, **options: Any) -> tuple[RoutedTeachers, list[Named]]:
    named = [Named(number, payload) for number, payload in enumerate(payloads, 1)]
    pools = {name: Teachers([teacher]) for name, teacher in zip(("maths", "code"), named, strict=True)}
    return RoutedTeachers(pools, heads or {"maths": "maths", "code": "code"}, **options), named


def test_each_row_is_scored_by_its_own_teacher_in_order() -> None:
    teachers, named = routed(Payload.HIDDEN, Payload.SAMPLED)
    found = asyncio.run(teachers.score(rollouts()))
    assert [members_of(each)[0].payload for each in found] == ["hidden", "sampled", "hidden", "hidden", "sampled"]
    assert [members_of(each)[0].head for each in found] == ["maths", "", "maths", "maths", ""], "log-probabilities need no head"
    assert [each.tokens for each in found] == [4, 2, 3, 1, 2]
    assert (sorted(named[0].seen), sorted(named[1].seen)) == ([0, 2, 3], [1, 4])


def test_teachers_of_one_model_share_a_head() -> None:
    teachers, _ = routed(Payload.HIDDEN, Payload.HIDDEN, heads={"maths": "maths", "code": "maths"})
    assert {members_of(each)[0].head for each in asyncio.run(teachers.score(rollouts()))} == {"maths"}


def test_scores_that_stay_with_their_teacher_keep_their_head() -> None:
    kept = KeptScores(Payload.HIDDEN, keeper="a", reference="r", count=2, size=8, head="code")
    fetched = kept.at(slice(1)).parts_of(TeacherScores(Payload.HIDDEN, hidden=np.zeros((2, 3))))
    assert (fetched.head, fetched.tokens) == ("code", 1)


def test_each_prompt_is_answered_by_its_own_teacher() -> None:
    teachers, _ = routed(Payload.SAMPLED, Payload.SAMPLED)
    written = asyncio.run(teachers.extend([each.prompt for each in rollouts()], Sampling(max_new_tokens=2, samples=2)))
    assert [each.tokens.tolist() for each in written[:4]] == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert [each.prompt.row for each in written] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_mixture_of_sampled_tokens_is_that_of_their_probabilities() -> None:
    teachers, named = routed(Payload.SAMPLED, Payload.SAMPLED, weights={"maths": 0.7, "code": 0.3})
    for row, found in enumerate(asyncio.run(teachers.score(rollouts()))):
        assert isinstance(found, TeacherScores) and found.payload == "sampled" and found.logprobs is not None
        expected = 0.7 * np.exp(-(1 + row / 10)) + 0.3 * np.exp(-(2 + row / 10))
        np.testing.assert_allclose(np.exp(found.logprobs), expected, rtol=1e-6)
    assert [len(each.seen) for each in named] == [5, 5]


def test_a_mixture_of_hidden_states_is_formed_by_the_learner() -> None:
    teachers, _ = routed(Payload.HIDDEN, Payload.HIDDEN, weights={"maths": 0.7, "code": 0.3})
    found = asyncio.run(teachers.score(rollouts()))[0]
    assert isinstance(found, MixedScores) and found.weights == (0.7, 0.3)
    assert [(member.head, float(member.hidden[0, 0])) for member in found.members if member.hidden is not None] == [
        ("maths", -1.0),
        ("code", -2.0),
    ]
    assert found.nbytes == 2 * 4 * 4 and found.at(slice(1, 3)).tokens == 2


@pytest.mark.parametrize("payload", [Payload.HIDDEN, Payload.SAMPLED])
def test_a_teacher_of_weight_1_alone_is_that_teacher(payload: Payload) -> None:
    teachers, named = routed(payload, payload, weights={"maths": 1.0})
    single, mixture = asyncio.run(named[0].score(rollouts())), asyncio.run(teachers.score(rollouts()))
    for one, other in zip(single, mixture, strict=True):
        assert isinstance(other, TeacherScores)
        for name in ("hidden", "logprobs"):
            pair = getattr(one, name), getattr(other, name)
            assert np.array_equal(*pair) if pair[0] is not None else pair[1] is None
    assert named[1].seen == [], "a teacher without a share is not asked"


def test_a_teacher_without_a_living_actor_leaves_nobody_to_score_again() -> None:
    teachers, named = routed(Payload.SAMPLED, Payload.SAMPLED)
    assert asyncio.run(teachers.describe())["teachers"] == {
        "maths": {"class": "Named", "number": 1, "actors": 1},
        "code": {"class": "Named", "number": 2, "actors": 1},
    }
    named[1].dead = True
    assert asyncio.run(teachers.bury()) == set() and len(teachers.members) == 1
