"""Who writes the text of a step, and what is trained on beside it."""

import asyncio
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from minidist.config.rollout import RolloutConfig
from minidist.config.text import PrefixConfig
from minidist.data.sources import Example
from minidist.experience.source import Beside, Prefixes, drawn, writers
from minidist.run.tracking import Clock
from minidist.types import Batch, Finish, Payload, Prompt, Rollout, Sampling, TeacherScores, Writer
from tests.support.fakes import TableEngine

SIZE, LIMIT = 7, 3
TABLE = np.random.default_rng(0).normal(size=(SIZE, SIZE))
STUDENT, TEACHER, DATASET = Writer.STUDENT, Writer.TEACHER, Writer.DATASET
MIXED = PrefixConfig(student=0.45, teacher=0.25, dataset=0.3)


def shares(per: Any = "row", **parts: float) -> PrefixConfig:
    return PrefixConfig(**({"student": 0.0} | parts), per=per)


@pytest.mark.parametrize("count", [1, 3, 7, 16, 64])
@pytest.mark.parametrize("prefix", [MIXED, shares(student=0.5, dataset=0.5), shares(teacher=0.9, dataset=0.1)])
def test_every_step_has_its_share_of_every_writer(prefix: PrefixConfig, count: int) -> None:
    for step in range(50):
        found = Counter(writers(prefix, count, step=step, seed=4))
        for writer, share in zip(Writer, (prefix.student, prefix.teacher, prefix.dataset), strict=True):
            assert abs(found[writer] - share * count) < 1
            assert share or not found[writer]


@pytest.mark.parametrize("per", ["row", "step"])
def test_over_many_steps_each_row_has_the_configured_shares(per: Any) -> None:
    """3,000 draws a row: the standard error of a share is 0.009 at most."""
    prefix = MIXED.model_copy(update={"per": per})
    table = np.array([[writer.value for writer in writers(prefix, 5, step=step, seed=0)] for step in range(3000)])
    for writer, share in ((STUDENT, 0.45), (TEACHER, 0.25), (DATASET, 0.3)):
        assert np.abs((table == writer.value).mean(0) - share).max() < 0.04
    together = (table == table[:, :1]).all(1)
    assert together.all() if per == "step" else not together.all()


@pytest.mark.parametrize("per", ["row", "step"])
def test_writers_are_a_function_of_seed_and_step(per: Any) -> None:
    prefix = MIXED.model_copy(update={"per": per})
    first = [writers(prefix, 8, step=step, seed=3) for step in range(20)]
    assert [writers(prefix, 8, step=step, seed=3) for step in reversed(range(20))] == first[::-1]
    assert [writers(prefix, 8, step=step, seed=5) for step in range(20)] != first
    assert len({tuple(each) for each in first}) > 1


@pytest.mark.parametrize("per", ["row", "step"])
@pytest.mark.parametrize("point", [0.0, 0.5, 1 - 2**-53])
def test_who_has_no_share_writes_nothing(monkeypatch: pytest.MonkeyPatch, per: Any, point: float) -> None:
    """Shares that are rounded by hand add up to a little less than 1."""

    class Edge:
        def random(self) -> float:
            return point

        def permutation(self, count: int) -> np.ndarray:
            return np.arange(count)

    monkeypatch.setattr("minidist.experience.source.np.random.default_rng", lambda seed: Edge())
    assert DATASET not in writers(shares(per, student=0.3333333, teacher=0.6666666), 9, step=0, seed=0)
    assert set(writers(shares(per, teacher=0.9999995), 9, step=0, seed=0)) == {TEACHER}


class NamingTeacher:
    """Its score of every token is the first token of the row, and where in the row it stands: row.position."""

    def __init__(self) -> None:
        self.scored: list[list[Rollout]] = []
        self.asked: list[dict[str, Any]] = []

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        self.scored.append(list(rollouts))
        return [
            TeacherScores(Payload.SAMPLED, logprobs=rollout.prompt.tokens[0] + np.arange(len(rollout.tokens)) / 100)
            for rollout in rollouts
        ]

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        self.asked.append({"rows": [prompt.row for prompt in prompts], **asdict(sampling)})
        tokens = np.array([6, 6])
        zeros = np.zeros(2)
        return [Rollout(prompt, tokens, zeros, zeros, Finish.STOP, sample) for prompt, sample in sampling.jobs(prompts)]


def prompts(count: int = 12) -> list[Prompt]:
    """Gold answers of one to five tokens; the first token of a prompt is unlike any other's."""
    gold = [np.arange(1 + row % 5, dtype=np.int32) for row in range(count)]
    return [Prompt(row, np.array([1000 + row, row % SIZE]), str(row), f"gold {row}", gold[row]) for row in range(count)]


def collected(prefix: PrefixConfig, engine: Any, teacher: Any, step: int = 2, **options: Any) -> Batch:
    settings = RolloutConfig(prompts_per_step=10, samples_per_prompt=2, max_new_tokens=LIMIT, temperature=0.7, top_p=0.8)
    options = {"scored": True} | options
    return asyncio.run(Prefixes(prompts(), engine, teacher, settings, prefix, seed=1, clock=Clock(), **options).next(step))


def test_everybody_writes_in_the_order_of_the_prompts() -> None:
    engine, teacher = TableEngine(TABLE), NamingTeacher()
    batch = collected(MIXED, engine, teacher)
    by, rows = writers(MIXED, 10, step=2, seed=1), drawn(12, 10, step=2, seed=1)
    wanted = [(row, by_, sample) for row, by_ in zip(rows, by, strict=True) for sample in range(1 if by_ is DATASET else 2)]
    assert [(rollout.prompt.row, rollout.writer, rollout.sample) for rollout in batch.rollouts] == wanted
    assert set(by) == set(Writer)
    assert len(engine.asked) == len(teacher.asked) == 1
    for asked, writer in ((engine.asked[0], STUDENT), (teacher.asked[0], TEACHER)):
        assert asked["rows"] == [row for row, by_ in zip(rows, by, strict=True) if by_ is writer]
    sampling = [
        {name: value for name, value in asked.items() if name != "rows"} for asked in (engine.asked[0], teacher.asked[0])
    ]
    assert sampling[0] == sampling[1]
    assert [sampling[0][name] for name in ("max_new_tokens", "temperature", "top_p")] == [LIMIT, 0.7, 0.8]
    assert [list(rollout.tokens) for rollout in batch.rollouts if rollout.writer is TEACHER] == [[6, 6]] * len(
        [by_ for by_ in by if by_ is TEACHER] * 2
    )
    for row, rollout in zip(batch.steps[0][0].rows, batch.rollouts, strict=True):
        assert row.scores is not None and row.scores.logprobs is not None
        assert row.scores.logprobs.tolist() == [1000 + rollout.prompt.row + at / 100 for at in range(len(rollout.tokens))]
        assert row.labels.tolist() == rollout.tokens.tolist()


def test_gold_answers_become_rollouts_that_nobody_sampled() -> None:
    batch = collected(shares(dataset=1.0), None, NamingTeacher())
    rows = drawn(12, 10, step=2, seed=1)
    assert [rollout.prompt.row for rollout in batch.rollouts] == rows, "one answer each, whatever samples_per_prompt"
    for row, rollout in zip(rows, batch.rollouts, strict=True):
        length = 1 + row % 5
        assert rollout.tokens.tolist() == list(range(min(length, LIMIT)))
        assert rollout.finish is (Finish.LENGTH if length > LIMIT else Finish.STOP)
        assert rollout.logprobs is None and rollout.writer is DATASET and rollout.text == f"gold {row}"
        assert rollout.versions.tolist() == [-1] * len(rollout.tokens)
    assert batch.metrics["rollout/truncated_frac"] == np.mean([1 + row % 5 > LIMIT for row in rows])


def test_nobody_is_asked_who_does_not_write_or_score() -> None:
    batch = collected(shares(dataset=1.0), None, None, scored=False)
    assert [stream.name for stream in batch.steps[0]] == ["main"]
    assert all(row.scores is None for row in batch.steps[0][0].rows)
    teacher = NamingTeacher()
    collected(shares(teacher=1.0), None, teacher, scored=False)
    assert len(teacher.asked) == 1 and not teacher.scored


GIVEN = [Example(np.array([2000 + row, 1, *[2] * (1 + row % 3)]), 1 + row % 2) for row in range(9)]
MORE = [Example(np.array([3000 + row, 4, 5]), 1) for row in range(4)]


@pytest.mark.parametrize("main", [True, False])
def test_streams_beside_the_main_one(main: bool) -> None:
    teacher = NamingTeacher()
    beside = (
        Beside("sft", MORE, 3, 0.5, scored=False),
        Beside("offline", GIVEN, 4, 2.0, scored=True),
        Beside("more", MORE, 2, 1.5, scored=True),
    )
    batch = collected(MIXED, TableEngine(TABLE), teacher, scored=main, beside=beside)
    assert [(stream.name, stream.objective, stream.weight) for stream in batch.steps[0]] == [
        ("main", "main", 1.0),
        ("sft", "sft", 0.5),
        ("offline", "offline", 2.0),
        ("more", "more", 1.5),
    ]
    for stream, examples, rows in zip(batch.steps[0][1:], (MORE, GIVEN, MORE), (3, 4, 2), strict=True):
        chosen = [examples[index] for index in drawn(len(examples), rows, step=2, seed=1 ^ zlib.crc32(stream.name.encode()))]
        assert [row.tokens.tolist() for row in stream.rows] == [example.tokens.tolist() for example in chosen]
        assert [len(row.labels) for row in stream.rows] == [len(each.tokens) - each.start for each in chosen]
        assert stream.loss_tokens == sum(len(row.labels) for row in stream.rows)
    assert len(teacher.scored) == 1, "one call for all"
    assert len(teacher.scored[0]) == 6 + (len(batch.rollouts) if main else 0)
    for stream, scored in zip(batch.steps[0], (main, False, True, True), strict=True):
        for row in stream.rows:
            assert (row.scores is not None) == scored
            if row.scores is not None and row.scores.logprobs is not None:
                assert row.scores.logprobs.tolist() == [row.tokens[0] + at / 100 for at in range(len(row.labels))]
