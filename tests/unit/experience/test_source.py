"""Where batches come from, and the loop that uses them, with fakes."""

import asyncio
from typing import Any

import numpy as np
import pytest

from minidist.data.sources import Example
from minidist.errors import CanaryError
from minidist.experience.draw import Shuffled, draw_rows
from minidist.experience.source import Collector, SupervisedBatches
from minidist.loop import Run, train
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.run.tracking import Clock
from minidist.types import Batch, Prompt, Update
from tests.support.collecting import collect, distill_config, make_collector
from tests.support.fakes import TableEngine, TableLearner, TableTeacher, table_logprobs

SIZE = 7
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, SIZE, SIZE))
ROLLOUT = {"prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 3, "temperature": 0.5, "top_p": 0.9}


def prompts(count: int = 10) -> list[Prompt]:
    return [Prompt(row, np.array([row % SIZE, (row + 1) % SIZE]), str(row)) for row in range(count)]


def test_examples_are_batched_in_drawn_order() -> None:
    examples = [Example(np.array([row, row, row + 1]), 1) for row in range(6)]
    batch = asyncio.run(SupervisedBatches(Shuffled(examples, 4, 2)).next(3))
    assert [int(row.tokens[0]) for row in batch.steps[0][0].rows] == draw_rows(6, 4, step=3, seed=2)
    assert (batch.step, batch.steps[0][0].objective, batch.steps[0][0].loss_tokens) == (3, "supervised", 8)
    assert not batch.rollouts and not batch.metrics


def on_policy(seed: int = 0) -> tuple[Collector, TableEngine, Clock]:
    config, engine, clock = distill_config(rollout=ROLLOUT, run={"seed": seed}), TableEngine(STUDENT), Clock()
    return make_collector(config, prompts(), engine, TableTeacher(TEACHER), clock=clock), engine, clock


def test_the_student_writes_and_the_teacher_scores_the_same_tokens() -> None:
    source, engine, clock = on_policy()
    batch = asyncio.run(source.next(1))
    asked = engine.asked[0]
    assert asked["rows"] == draw_rows(10, 4, step=1, seed=0)
    assert (asked["samples"], asked["temperature"], asked["top_p"]) == (2, 0.5, 0.9)
    assert [rollout.prompt.row for rollout in batch.rollouts] == [row for row in asked["rows"] for _ in range(2)]
    for row, rollout in zip(batch.steps[0][0].rows, batch.rollouts, strict=True):
        assert row.labels.tolist() == rollout.tokens.tolist()
        text = [int(rollout.prompt.tokens[-1]), *rollout.tokens.tolist()]
        assert row.scores is not None and np.array_equal(row.scores.logprobs, table_logprobs(TEACHER, text))  # type: ignore[arg-type]
    assert batch.steps[0][0].loss_tokens == 4 * 2 * 3
    assert batch.main is batch.steps[0][0] and batch.measures is None
    assert batch.metrics == {
        "rollout/length_mean_tokens": 3.0,
        "rollout/truncated_frac": 1.0,
        "rollout/repetition_frac": 0.0,
        "rollout/distinct_4": 1.0,
        "teacher/floored_frac": 0.0,
    }
    assert set(clock.take()) == {"time/generate_s", "time/score_s"}


def test_figures_of_the_engine_are_metrics_of_the_collection() -> None:
    class TurnTaking(TableEngine):
        async def figures(self) -> dict[str, float]:
            return {"mix/turns": 7.0}

    config = distill_config(rollout=ROLLOUT)
    batch = collect(config, prompts(), TurnTaking(STUDENT), TableTeacher(TEACHER))
    assert batch.metrics["mix/turns"] == 7.0


class Journal:
    """A run of fakes that all write into one list of calls."""

    def __init__(self, **hooks: Any) -> None:
        self.calls: list[str] = []
        self.seen: list[dict[str, float]] = []
        self.engine = TableEngine(STUDENT, self.calls)
        self.learner = TableLearner(STUDENT, self.calls)
        clock = Clock()
        teacher = TableTeacher(TEACHER, self.calls)
        source = make_collector(distill_config(rollout=ROLLOUT), prompts(), self.engine, teacher, clock=clock)
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
