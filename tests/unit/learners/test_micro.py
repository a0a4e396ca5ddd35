"""Micro-batches are laid out when their turn comes; scores that are kept elsewhere are fetched one ahead."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.data.batching import collate, micro_batch
from minidist.errors import RoleError, ScoresLostError
from minidist.learners import micro
from minidist.learners.group import OneProcess
from minidist.learners.learner import LocalLearner
from minidist.learners.teacher import FrozenTeacher, ResidentTeacher, SeveralTeachers
from minidist.losses import reverse_kl
from minidist.losses.objectives import Match
from minidist.teachers.lost import RescoringLearner
from minidist.teachers.pool import Teachers
from minidist.teachers.routed import RoutedTeachers
from minidist.types import Batch, KeptScores, Prompt, Rollout, Row, Sampling, Stream, TeacherScores, members_of, with_members
from tests.support.learners import head_of_teacher, local_learner
from tests.support.tiny import hidden_scores, random_rollouts, tiny_model

LENGTHS = [(3, 4), (1, 9), (6, 1), (2, 2), (5, 8), (4, 3)]


class Store:
    """Stands for the object store and the two teachers that keep scores in it; `lost` teachers are dead."""

    def __init__(self) -> None:
        self.kept: dict[object, TeacherScores] = {}
        self.lost: set[str] = set()
        self.fetched = 0

    def keep(self, scores: TeacherScores, keeper: str, rollout: Rollout) -> KeptScores:
        reference = object()
        self.kept[reference] = scores
        return KeptScores(
            scores.payload, keeper=keeper, reference=reference, count=scores.tokens, size=scores.nbytes, rollout=rollout
        )

    def fetch(self, rows: Sequence[Row]) -> list[Row]:
        found = []
        for row in rows:
            assert row.scores is not None
            members = tuple(map(self._member, members_of(row.scores)))
            found.append(replace(row, scores=with_members(row.scores, members)))
        return found

    def _member(self, scores: TeacherScores) -> TeacherScores:
        assert isinstance(scores, KeptScores)
        if scores.keeper in self.lost:
            raise ScoresLostError("lost")
        self.fetched += 1
        return scores.parts_of(self.kept[scores.reference])


class Keeper:
    """A teacher in an actor, whose scores stay in the store."""

    def __init__(self, name: str, store: Store) -> None:
        self.name = name
        self._store = store
        self.rows = 0

    async def keep_scores(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        self.rows += len(rollouts)
        scores = hidden_scores(tiny_model(seed=1), rollouts)
        return [self._store.keep(each, self.name, rollout) for each, rollout in zip(scores, rollouts, strict=True)]

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        raise AssertionError("scores stay in the store")

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        raise NotImplementedError

    async def describe(self) -> dict[str, object]:
        if self.name in self._store.lost:
            raise RoleError(f"the {self.name} died")
        return {}

    async def close(self) -> None: ...


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    monkeypatch.setattr(micro, "fetched", made.fetch)
    return made


def learner(teacher: ResidentTeacher | None = None) -> LocalLearner:
    settings = LearnerConfig(optimizer=OptimizerConfig(type="sgd", lr=1.0, grad_clip=None), micro_batch_tokens=10)
    teacher = teacher or FrozenTeacher(head_of_teacher(tiny_model(seed=1)))
    return local_learner(tiny_model(), settings, {"main": Match(reverse_kl)}, teacher=teacher)


def stream(seed: int, teachers: Teachers) -> Stream:
    rollouts = random_rollouts(LENGTHS, seed=seed)
    return collate("main", rollouts, asyncio.run(teachers.score(rollouts)), objective="main")


def whole(stream: Stream, store: Store) -> Stream:
    return replace(stream, rows=tuple(store.fetch(stream.rows)))


def test_no_more_than_the_next_micro_batch_is_fetched(store: Store) -> None:
    rows = stream(0, Teachers([Keeper("teacher", store)])).rows
    wanted = [micro_batch(store.fetch([row]), [index]) for index, row in enumerate(rows)]
    store.fetched = 0
    for number, found in enumerate(micro.laid_out([([row], [index]) for index, row in enumerate(rows)], OneProcess()), 1):
        assert number <= store.fetched <= number + 1
        (fetched,), (expected,) = found.scores, wanted[number - 1].scores
        assert isinstance(fetched, TeacherScores) and isinstance(expected, TeacherScores)
        assert fetched.hidden is not None and (fetched.hidden == expected.hidden).all()
    assert number == len(rows)


def test_an_update_whose_scores_die_goes_on_with_those_of_the_other_teacher(store: Store) -> None:
    """The first optimizer step was taken when the second one misses its scores: it is not taken again."""
    keepers = [Keeper("teacher 0", store), Keeper("teacher 1", store)]
    teachers = Teachers(keepers)
    one = stream(0, Teachers(keepers[:1]))
    both = stream(1, teachers)
    assert {row.scores.keeper for row in both.rows if isinstance(row.scores, KeptScores)} == {"teacher 0", "teacher 1"}
    undisturbed = learner()
    expected = asyncio.run(undisturbed.update(Batch(3, ((whole(one, store),), (whole(both, store),)))))
    lost = sum(isinstance(row.scores, KeptScores) and row.scores.keeper == "teacher 1" for row in both.rows)
    scored = keepers[0].rows

    store.lost.add("teacher 1")
    inner = learner()
    found = asyncio.run(RescoringLearner(inner, teachers).update(Batch(3, ((one,), (both,)))))

    assert keepers[0].rows == scored + lost, "only what was lost is scored again"
    assert teachers.members == [keepers[0]]
    assert found.version == expected.version == 2
    assert found.metrics == pytest.approx(expected.metrics)
    for own, other in zip(inner._pass.model.parameters(), undisturbed._pass.model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_scores_that_no_teacher_can_make_again_end_the_update(store: Store) -> None:
    keeper = Keeper("teacher", store)
    teachers = Teachers([keeper])
    batch = Batch(0, ((stream(0, teachers),),))
    store.lost.add("teacher")
    with pytest.raises(ScoresLostError):
        asyncio.run(RescoringLearner(learner(), teachers).update(batch))


@pytest.mark.parametrize("weights", [{}, {"maths": 0.7, "code": 0.3}], ids=["by row", "mixture"])
def test_lost_scores_of_one_of_several_teachers_are_made_again_by_its_other_actor(
    store: Store, weights: dict[str, float]
) -> None:
    keepers = {name: [Keeper(f"{name} {number}", store) for number in range(2)] for name in ("maths", "code")}
    teachers = RoutedTeachers({name: Teachers(each) for name, each in keepers.items()}, {n: n for n in keepers}, weights)
    rollouts = [
        replace(each, prompt=replace(each.prompt, teacher=("maths", "code")[number % 2]))
        for number, each in enumerate(random_rollouts(LENGTHS))
    ]
    rows = collate("main", rollouts, asyncio.run(teachers.score(rollouts)), objective="main")
    heads = dict.fromkeys(keepers, head_of_teacher(tiny_model(seed=1)))
    made = [learner(SeveralTeachers(heads, () if weights else tuple(keepers))) for _ in range(2)]
    expected = asyncio.run(made[0].update(Batch(0, ((whole(rows, store),),))))

    store.lost.add("code 1")
    found = asyncio.run(RescoringLearner(made[1], teachers).update(Batch(0, ((rows,),))))
    assert found.metrics == pytest.approx(expected.metrics)
    for own, other in zip(made[1]._pass.model.parameters(), made[0]._pass.model.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-7)

    store.lost.add("code 0")
    with pytest.raises(ScoresLostError):
        asyncio.run(RescoringLearner(made[1], teachers).update(Batch(1, ((rows,),))))
