"""Where batches come from, and the loop that uses them, with fakes."""

import asyncio
from typing import Any

import numpy as np
import pytest

from minidist.config.rollout import RolloutConfig
from minidist.config.text import PrefixConfig
from minidist.data.sources import Example
from minidist.errors import CanaryError
from minidist.experience.source import Examples, Prefixes, drawn
from minidist.loop import Run, train
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.run.tracking import Clock
from minidist.types import Batch, Prompt, Update
from tests.support.fakes import TableEngine, TableLearner, TableTeacher, table_logprobs

SIZE = 7
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, SIZE, SIZE))
ROLLOUT = RolloutConfig(prompts_per_step=4, samples_per_prompt=2, max_new_tokens=3, temperature=0.5, top_p=0.9)


def prompts(count: int = 10) -> list[Prompt]:
    return [Prompt(row, np.array([row % SIZE, (row + 1) % SIZE]), str(row)) for row in range(count)]


@pytest.mark.parametrize(("count", "size"), [(10, 5), (10, 3), (7, 4), (3, 7), (1, 2), (5, 5)])
def test_every_row_once_a_pass(count: int, size: int) -> None:
    steps = 3 * count
    stream = [index for step in range(steps) for index in drawn(count, size, step=step, seed=1)]
    assert len(stream) == steps * size
    for start in range(0, len(stream), count):
        assert sorted(stream[start : start + count]) == list(range(count))


def test_drawn_is_a_function_of_its_arguments() -> None:
    late = drawn(50, 8, step=20, seed=3)
    for step in range(9):
        drawn(50, 8, step=step, seed=4)
    assert drawn(50, 8, step=20, seed=3) == late
    assert drawn(50, 8, step=20, seed=4) != late
    assert drawn(50, 50, step=0, seed=3) != drawn(50, 50, step=1, seed=3), "passes are shuffled anew"


def test_examples_are_batched_in_drawn_order() -> None:
    examples = [Example(np.array([row, row, row + 1]), 1) for row in range(6)]
    batch = asyncio.run(Examples(examples, rows=4, seed=2).next(3))
    assert [int(row.tokens[0]) for row in batch.steps[0][0].rows] == drawn(6, 4, step=3, seed=2)
    assert (batch.step, batch.steps[0][0].objective, batch.steps[0][0].loss_tokens) == (3, "supervised", 8)


def prefixes(engine: Any, teacher: Any, clock: Clock, seed: int = 0, **shares: Any) -> Prefixes:
    """The source of a run; on-policy unless `shares` say otherwise."""
    return Prefixes(prompts(), engine, teacher, ROLLOUT, PrefixConfig(**shares), scored=True, seed=seed, clock=clock)


def on_policy(seed: int = 0) -> tuple[Prefixes, TableEngine, Clock]:
    engine, clock = TableEngine(STUDENT), Clock()
    return prefixes(engine, TableTeacher(TEACHER), clock, seed), engine, clock


def test_student_writes_and_teacher_scores_the_same_tokens() -> None:
    source, engine, clock = on_policy()
    batch = asyncio.run(source.next(1))
    asked = engine.asked[0]
    assert asked["rows"] == drawn(10, 4, step=1, seed=0)
    assert (asked["samples"], asked["temperature"], asked["top_p"]) == (2, 0.5, 0.9)
    assert [rollout.prompt.row for rollout in batch.rollouts] == [row for row in asked["rows"] for _ in range(2)]
    for row, rollout in zip(batch.steps[0][0].rows, batch.rollouts, strict=True):
        assert row.labels.tolist() == rollout.tokens.tolist()
        text = [int(rollout.prompt.tokens[-1]), *rollout.tokens.tolist()]
        assert np.array_equal(row.scores.logprobs, table_logprobs(TEACHER, text))
    assert batch.steps[0][0].loss_tokens == 4 * 2 * 3
    assert batch.metrics == {
        "rollout/length_mean_tokens": 3.0,
        "rollout/truncated_frac": 1.0,
        "rollout/repetition_frac": 0.0,
        "rollout/distinct_4": 1.0,
    }
    assert set(clock.take()) == {"time/generate_s", "time/score_s"}


def test_seed_of_a_collection_is_a_function_of_run_and_step() -> None:
    seeds = {}
    for run in (0, 1):
        source, engine, _ = on_policy(run)
        for step in (0, 1, 0):
            asyncio.run(source.next(step))
        assert engine.asked[0]["seed"] == engine.asked[2]["seed"]
        seeds |= {(run, step): engine.asked[step]["seed"] for step in (0, 1)}
    assert len(set(seeds.values())) == 4


class Journal:
    """A run of fakes that all write into one list of calls."""

    def __init__(self, **hooks: Any) -> None:
        self.calls: list[str] = []
        self.seen: list[dict[str, float]] = []
        self.engine = TableEngine(STUDENT, self.calls)
        self.learner = TableLearner(STUDENT, self.calls)
        clock = Clock()
        source = prefixes(self.engine, TableTeacher(TEACHER, self.calls), clock)
        transfer = ObjectStoreTransfer(1e-9)
        self.before_update = hooks.get("before", self.before)
        self.after_step = hooks.get("after", self.after)
        engines = hooks.get("engines", [self.engine])
        self.run = Run(hooks.get("steps", 2), source, self.learner, clock, self, engines, transfer)

    async def stopped(self, step: int) -> None:
        self.calls.append(f"stopped before step {step}")

    async def before(self, batch: Batch) -> None:
        self.calls.append("check")

    async def after(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        self.calls.append(f"step {step} version {update.version}")
        self.seen.append(metrics)
        return False


STEP = ["generate", "score", "check", "update", "weights", "load"]


def test_collect_check_update_publish_in_turn() -> None:
    journal = Journal()
    assert asyncio.run(train(journal.run)) == 2
    assert journal.calls == [*STEP, "step 0 version 1", *STEP, "step 1 version 2"]
    assert np.array_equal(journal.engine.table, journal.learner.table)


def test_metrics_of_a_step_are_all_there() -> None:
    journal = Journal()
    asyncio.run(train(journal.run))
    times = {f"time/{name}_s" for name in ("generate", "score", "check", "update", "publish")}
    assert journal.seen[0].keys() >= times | {"gap", "rollout/length_mean_tokens", "canary/sync_nats_max"}
    assert journal.seen[0]["canary/sync_nats_max"] < 1e-12


def test_next_collection_is_written_with_the_published_weights() -> None:
    versions: list[int] = []

    async def after(step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        versions.extend({int(version) for rollout in batch.rollouts for version in rollout.versions})
        return False

    asyncio.run(train(Journal(after=after, steps=3).run))
    assert versions == [0, 1, 2]


def test_failing_canary_stops_before_the_update() -> None:
    async def before(batch: Batch) -> None:
        raise CanaryError("numbers are wrong")

    journal = Journal(before=before)
    with pytest.raises(CanaryError):
        asyncio.run(train(journal.run))
    assert journal.calls == ["generate", "score"]
    assert np.array_equal(journal.learner.table, STUDENT)


def test_run_ends_when_after_step_says_so() -> None:
    async def after(step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        return step == 1

    assert asyncio.run(train(Journal(after=after, steps=9).run)) == 2


def test_without_engines_nothing_is_published() -> None:
    journal = Journal(engines=[])
    asyncio.run(train(journal.run))
    assert "weights" not in journal.calls
    assert "canary/sync_nats_max" not in journal.seen[0]


def test_student_comes_closer_to_its_teacher() -> None:
    journal = Journal(steps=40)
    asyncio.run(train(journal.run))
    assert journal.seen[-1]["gap"] < 0.5 * journal.seen[0]["gap"]


def test_clock_adds_up_and_starts_again() -> None:
    clock = Clock()
    for _ in range(2):
        with clock.span("work"):
            pass
    assert set(clock.take()) == {"time/work_s"}
    assert clock.take() == {}
