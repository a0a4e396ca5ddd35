"""Scores that stay with the teacher until a rank fetches them: the same update to the last bit, and a teacher's death."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from minidist.cluster import kept
from minidist.learners.ranks import LearnerRanks
from minidist.roles.make import RoleContext, make_teacher
from minidist.teachers.lost import RescoringLearner
from minidist.teachers.pool import Teachers
from minidist.types import Batch, KeptScores, Rollout, TeacherScores
from tests.integration.conftest import Stack, settings
from tests.integration.test_equalities import on_policy_batch, plain_learner, written
from tests.integration.test_ranks import weights_of
from tests.support.config import teacher_config

ROWS = settings(micro_batch_tokens=90, zero_stage=2)


def limit(size: int) -> Any:
    def change() -> None:
        from minidist.cluster import kept

        kept.SMALL = size

    return change


def losing(name: str) -> Any:
    """Makes a rank find that the scores which actor `name` kept are lost, as they are when its node is."""

    def change() -> None:
        from minidist.errors import ScoresLostError
        from minidist.learners import micro

        whole = micro.fetched

        def fetched(rows: Any) -> Any:
            if any(getattr(row.scores, "keeper", None) == name for row in rows):
                raise ScoresLostError("lost")
            return whole(rows)

        micro.fetched = fetched

    return change


@pytest.fixture
def third(stack: Stack) -> Iterator[Any]:
    """Another teacher, that a test may kill."""
    context = RoleContext(stack.renderer, max_tokens=48)
    teacher = stack.run(
        stack.cluster.host("teacher", make_teacher, context=context, config=teacher_config(model=str(stack.teacher_path)))
    )
    yield teacher
    stack.dismiss(teacher)


@pytest.fixture
def teachers(stack: Stack, third: Any) -> Iterator[Teachers]:
    """Two teachers that keep scores of every size."""
    pair = [stack.teacher, third]
    for teacher in pair:
        stack.run(teacher.ask(limit(0)))
    yield Teachers(pair)
    stack.run(stack.teacher.ask(limit(kept.SMALL)))


@pytest.fixture(scope="module")
def rollouts(stack: Stack) -> list[Rollout]:
    stack.run(stack.engines.load(stack.student))
    return written(stack, count=25, seed=5)


@pytest.fixture(scope="module")
def batch(stack: Stack, rollouts: list[Rollout]) -> Batch:
    return on_policy_batch(stack, rollouts)


def scored(batch: Batch, scores: list[TeacherScores]) -> Batch:
    main, other = batch.steps[0]
    rows = tuple(replace(row, scores=each) for row, each in zip(main.rows, scores, strict=True))
    return replace(batch, steps=((replace(main, rows=rows), other),))


def updated(stack: Stack, learner: LearnerRanks | RescoringLearner, batch: Batch) -> dict[str, np.ndarray]:
    stack.run(learner.update(batch))
    return weights_of(learner, stack)


def test_kept_scores_give_the_update_of_sent_ones_though_a_teacher_dies(
    stack: Stack, teachers: Teachers, third: Any, batch: Batch, rollouts: list[Rollout]
) -> None:
    scores = stack.run(teachers.score(rollouts))
    assert all(isinstance(each, KeptScores) and each.hidden is None for each in scores)
    assert {each.keeper for each in scores} == {stack.teacher.name, third.name}
    whole = kept.at_hand(scores)
    for own, other in zip(whole, stack.run(stack.teacher.score(rollouts)), strict=True):
        np.testing.assert_allclose(own.hidden, other.hidden, atol=1e-5)

    sent = updated(stack, stack.ranks(ROWS), scored(batch, whole))
    fetched = updated(stack, stack.ranks(ROWS), scored(batch, scores))
    assert sent.keys() == fetched.keys()
    assert all(np.array_equal(fetched[name], array) for name, array in sent.items())
    assert any(not np.array_equal(array, weights_of(plain_learner(stack))[name]) for name, array in sent.items())

    ray.kill(third.actor)
    left = updated(stack, stack.ranks(ROWS), scored(batch, scores))
    assert all(np.array_equal(left[name], array) for name, array in sent.items()), "the store outlives its actor"

    ranks = stack.ranks(ROWS)
    stack.run(stack.pair[1].ask(losing(third.name)))
    learner = RescoringLearner(ranks, teachers)
    again = updated(stack, learner, scored(batch, scores))
    assert teachers.members == [stack.teacher]
    for name, array in sent.items():
        np.testing.assert_allclose(again[name], array, atol=1e-5, err_msg=name)
    measured = stack.run(learner.measure(scored(batch, stack.run(teachers.score(rollouts))).steps[0][0]))
    assert measured.reverse_kl is not None and len(measured.reverse_kl) == batch.steps[0][0].loss_tokens
