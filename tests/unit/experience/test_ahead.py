"""Collections written ahead of the learner, in virtual time: how long steps take, how old text is, failures, and resuming."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from minidist.errors import CanaryError
from minidist.experience.ahead import WriteAhead
from minidist.experience.source import Collector
from minidist.loop import Run, train
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.run.canaries import age_of, check_age
from minidist.run.tracking import Clock
from minidist.types import Batch, Finish, Prompt, Rollout, Update, Writer
from tests.support.collecting import distill_config, make_collector
from tests.support.virtual import Log, TimedEngine, TimedLearner, TimedTeacher, run

SIZE, PROMPTS, SAMPLES = 7, 4, 2
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, SIZE, SIZE))
ROLLOUT = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "max_new_tokens": 3}
SCORE, PUBLISH = 8.0, 0.5  # seconds of a collection's scoring, and of a publication


class Scene:
    """A run of timed fakes. `most`: collections ahead; `strict`: as in run.deterministic."""

    def __init__(
        self, most: int, *, steps: int = 6, write: float = 40.0, update: float = 20.0, strict: bool = False, **loop: Any
    ) -> None:
        self.log, self.most = Log(), most
        config = distill_config(rollout=ROLLOUT, loop={"max_staleness": most, **loop}, run={"deterministic": strict})
        self.engine = TimedEngine(STUDENT, self.log, write / PROMPTS, PUBLISH)
        self.teacher = TimedTeacher(TEACHER, self.log, SCORE / PROMPTS / SAMPLES)
        self.learner = TimedLearner(STUDENT, self.log, update)
        prompts = [Prompt(row, np.array([row % SIZE, (row + 1) % SIZE]), str(row)) for row in range(40)]
        self.collector: Collector = make_collector(config, prompts, self.engine, self.teacher)
        transfer = ObjectStoreTransfer(1e-9)
        self.ahead = WriteAhead(self.collector, transfer, most=most, steps=steps, strict=strict)
        source, publishes = (self.ahead, self.ahead) if most else (self.collector, transfer)
        self.run: Run[Batch] = Run(steps, source, self.learner, Clock(), self, [self.engine], publishes)
        self.ages: list[int | None] = []
        self.states: list[str] = []
        self.stopped_at: list[int] = []

    async def before_update(self, batch: Batch) -> None:
        self.ages.append(age_of(batch.rollouts, batch.step))
        check_age(self.ages[-1], self.most)

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        self.states.append(self.state())
        return False

    async def stopped(self, step: int) -> None:
        self.stopped_at.append(step)
        self.states.append(self.state())

    def state(self) -> str:
        """A checkpoint, through JSON."""
        learner = {"table": self.learner.table.tolist(), "version": self.learner.version}
        source = (self.ahead if self.most else self.collector).state_dict()
        return json.dumps({"step": self.run.step, "learner": learner, "source": source})

    def resume(self, checkpoint: str) -> "Scene":
        state = json.loads(checkpoint)
        self.run.step, self.learner.version = state["step"], state["learner"]["version"]
        self.learner.table = np.array(state["learner"]["table"])
        self.engine.table, self.engine._version = self.learner.table.copy(), self.learner.version
        (self.ahead if self.most else self.collector).load_state_dict(state["source"])
        return self

    async def train(self) -> int:
        async with self.ahead:
            return await train(self.run)


@pytest.mark.parametrize(("write", "update"), [(40, 20), (12, 30), (28, 20)])
def test_a_step_takes_as_long_as_the_slower_of_writing_and_learning(write: float, update: float) -> None:
    on_policy, ahead = (Scene(most, write=write, update=update, steps=6) for most in (0, 1))
    assert run(on_policy.train())[1] == pytest.approx(6 * (write + SCORE + update + PUBLISH))
    overlapped = max(write, SCORE + update) + PUBLISH
    assert run(ahead.train())[1] == pytest.approx(write + 5 * overlapped + SCORE + update + PUBLISH)


def test_text_is_one_collection_old_from_the_second_step_on() -> None:
    scene = Scene(1)
    run(scene.train())
    assert scene.ages == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("most", [2, 3])
def test_text_is_never_older_than_allowed(most: int) -> None:
    slow, fast = Scene(most, write=90, steps=8), Scene(most, write=2, steps=8)
    for scene in (slow, fast):
        run(scene.train())
    assert max(age for age in slow.ages if age is not None) == 1, "an engine that is slower than the learner is one behind"
    assert max(age for age in fast.ages if age is not None) == most


@pytest.mark.parametrize("write", [2.0, 90.0])
def test_a_strict_run_writes_each_collection_with_the_weights_of_a_given_step(write: float) -> None:
    scene = Scene(2, write=write, strict=True)
    run(scene.train())
    assert scene.ages == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_no_engine_swaps_weights_while_it_writes(most: int) -> None:
    scene = Scene(most, write=30)
    run(scene.train())
    writing, loading = scene.log.spans("write"), scene.log.spans("load")
    assert len(loading) == 6 and len(writing) == 6 * PROMPTS
    assert not [
        pair for pair in ((w, s) for w in writing for s in loading) if pair[0][0] < pair[1][1] and pair[1][0] < pair[0][1]
    ]
    assert len(scene.engine.asked) == 6, "nothing is written for steps after the last"


def test_who_holds_the_lock_has_the_engines_alone() -> None:
    """As an evaluation does."""

    async def scene() -> None:
        made = Scene(2, write=30)

        async def after(step: int, *_: Any) -> bool:
            async with made.ahead.writing:
                await made.log.spend("evaluate", 25)
            return False

        made.after_step = after  # type: ignore[method-assign]
        await made.train()
        spans, evaluations = made.log.spans("write"), made.log.spans("evaluate")
        # Whole collections: an evaluation never falls between two answers of one.
        first, last = spans[::PROMPTS], spans[PROMPTS - 1 :: PROMPTS]
        for (start, _), (_, end) in zip(first, last, strict=True):
            assert not [each for each in evaluations if each[0] < end and start < each[1]]

    run(scene())


def test_a_failure_of_the_engine_cancels_the_scoring() -> None:
    scene = Scene(1, write=8)
    scene.engine.failing = 1
    scene.teacher.seconds = 100.0
    with pytest.raises(RuntimeError, match="the engine died"):
        run(scene.train())
    assert scene.log.spans("score broken") == [(8.0, 10.0)] and not scene.log.spans("update")
    assert scene.stopped_at == []


def test_a_failure_of_the_engine_during_an_update_is_raised_before_the_weights_go_out() -> None:
    scene = Scene(1, write=48, update=20)
    scene.engine.failing = 1
    with pytest.raises(RuntimeError, match="the engine died"):
        run(scene.train())
    assert len(scene.log.spans("update")) == 1 and len(scene.ages) == 1


def test_a_failure_of_the_learner_ends_the_writing() -> None:
    scene = Scene(1, write=100)
    scene.learner.failing = 0
    with pytest.raises(RuntimeError, match="the learner died"):
        run(scene.train())
    assert len(scene.log.spans("write broken")) == 1
    assert scene.stopped_at == []


def test_a_failure_of_the_teacher_ends_the_writing() -> None:
    scene = Scene(1, write=100)
    scene.teacher.failure = RuntimeError("the teacher died")
    with pytest.raises(RuntimeError, match="the teacher died"):
        run(scene.train())
    assert len(scene.log.spans("write broken")) == 1


async def cancelled(scene: Scene, at: float) -> None:
    task = asyncio.ensure_future(scene.train())
    await asyncio.sleep(at)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


@pytest.mark.parametrize("most", [0, 1, 2])
@pytest.mark.parametrize("at", [1.0, 30.0, 45.0, 60.0, 69.5, 100.0, 127.0, 150.0])
def test_a_run_that_is_stopped_anywhere_goes_on_exactly(most: int, at: float) -> None:
    """Also where it is stopped while the engine writes ahead."""
    whole = Scene(most, strict=True)
    run(whole.train())
    first = Scene(most, strict=True)
    run(cancelled(first, at))
    assert len(first.stopped_at) == 1
    rest = Scene(most, strict=True).resume(first.states[-1])
    run(rest.train())
    assert np.array_equal(rest.learner.table, whole.learner.table)
    assert rest.ages == whole.ages[first.stopped_at[0] :]


@pytest.mark.parametrize("most", [1, 2])
def test_every_checkpoint_holds_what_is_written_ahead(most: int) -> None:
    whole = Scene(most, strict=True)
    run(whole.train())
    for step, state in enumerate(whole.states[:-1], 1):
        written = [step for step, *_ in json.loads(state)["source"]["written"]]
        assert written == list(range(step, min(step + most, 6)))
        rest = Scene(most, strict=True).resume(state)
        run(rest.train())
        assert np.array_equal(rest.learner.table, whole.learner.table)


def test_a_checkpoint_before_the_drafts_of_a_resumed_run_are_used_holds_them_still() -> None:
    whole = Scene(2, strict=True)
    run(whole.train())
    resumed = Scene(2, strict=True).resume(whole.states[2])
    again = Scene(2, strict=True).resume(resumed.state())
    assert again.state() == resumed.state()
    run(again.train())
    assert np.array_equal(again.learner.table, whole.learner.table)


def test_age_is_of_text_that_the_student_wrote_for_this_step() -> None:
    def rollout(version: int, **fields: Any) -> Rollout:
        logprobs = fields.pop("logprobs", np.zeros(2))
        return Rollout(Prompt(0, np.zeros(1), ""), np.zeros(2), logprobs, np.full(2, version), Finish.STOP, **fields)

    assert age_of([rollout(5), rollout(3), rollout(0, logprobs=None), rollout(0, writer=Writer.TEACHER)], 7) == 4
    assert age_of([rollout(-1, writer=Writer.DATASET)], 7) is None
    check_age(None, 0)
    check_age(4, 4)
    for age in (5, -1):
        with pytest.raises(CanaryError, match=r"weights of .* optimizer steps ago, and loop.max_staleness allows 4"):
            check_age(age, 4)
