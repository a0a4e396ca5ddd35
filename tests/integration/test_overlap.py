"""Text written ahead, and answers scored as they finish, with vLLM, Ray and DeepSpeed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minidist.experience.ahead import WriteAhead
from minidist.experience.source import Collector
from minidist.loop import Run, train
from minidist.roles.make import make_learner
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.run.canaries import age_of
from minidist.run.tracking import Clock
from minidist.types import Batch, Measures, Update
from tests.integration.conftest import Stack, learner_arguments, settings
from tests.support.collecting import distill_config, make_collector

TEXTS = ["badc=", "a=", "dcba=", "aabb=", "ca=", "bbb=", "dab=", "cd=", "adad=", "b=", "ccab=", "dd="]
ROLLOUT = {"prompts_per_step": 6, "samples_per_prompt": 2, "max_new_tokens": 8}


def collector(stack: Stack, engines: Any, **loop: Any) -> Collector:
    config = distill_config(rollout=ROLLOUT, loop=loop, run={"deterministic": True})
    return make_collector(config, stack.prompts(TEXTS), engines, stack.teachers)


def test_streamed_scores_are_those_of_the_end_to_the_last_bit(stack: Stack) -> None:
    """Two engines, two teachers."""
    for step in range(2):
        plain, streamed = (stack.run(collector(stack, stack.engines, stream=stream).next(step)) for stream in (False, True))
        assert sum(len(rollout.tokens) for rollout in plain.rollouts) > 20
        for left, right in zip(plain.steps[0][0].rows, streamed.steps[0][0].rows, strict=True):
            assert np.array_equal(left.tokens, right.tokens)
            assert left.scores is not None and right.scores is not None
            assert np.array_equal(left.scores.hidden, right.scores.hidden)  # type: ignore[arg-type]
        for left, right in zip(plain.rollouts, streamed.rollouts, strict=True):
            assert np.array_equal(left.logprobs, right.logprobs)  # type: ignore[arg-type]


class Watched:
    """Measures each collection under the student that is about to learn from it."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner
        self.batches: list[Batch] = []
        self.measures: list[Measures] = []
        self.metrics: list[dict[str, float]] = []

    async def before_update(self, batch: Batch) -> None:
        assert batch.main is not None
        self.batches.append(batch)
        self.measures.append(await self.learner.measure(batch.main))

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        self.metrics.append(metrics)
        return False

    async def stopped(self, step: int) -> None:
        raise AssertionError("nothing stops this run")


def test_text_is_one_update_old_and_its_ratios_are_those_of_its_writer(stack: Stack) -> None:
    arguments = learner_arguments(stack, settings(lr=0.3, backend="single"))
    arguments |= {"context": replace(stack.context, ratio_max=1.2)}
    learner = stack.run(stack.cluster.host("learner", make_learner, **arguments))
    engine = stack.host_engine(stack.student)
    transfer, watch, clock = ObjectStoreTransfer(1e-3), Watched(learner), Clock()
    made = collector(stack, engine, max_staleness=1, stream=True, ratio_max=1.2)

    async def run() -> None:
        await transfer.publish(learner, [engine])
        async with WriteAhead(made, transfer, most=1, steps=4, strict=True) as ahead:
            await train(Run(4, ahead, learner, clock, watch, [engine], ahead))

    try:
        stack.run(run())
    finally:
        stack.dismiss(engine)
        stack.dismiss(learner)
    assert [age_of(batch.rollouts, batch.step) for batch in watch.batches] == [0, 1, 1, 1]
    assert transfer.proved == 5
    for batch, measures, metrics in zip(watch.batches, watch.measures, watch.metrics, strict=True):
        written = np.concatenate([rollout.logprobs for rollout in batch.rollouts])  # type: ignore[arg-type]
        ratio = np.exp(measures.student_logprob - written)
        assert metrics["policy/ratio_max"] == pytest.approx(ratio.max(), rel=1e-3)
        assert metrics["policy/ratio_mean"] == pytest.approx(np.minimum(ratio, 1.2).mean(), rel=1e-3)
        if batch.step == 0:
            assert ratio == pytest.approx(np.ones_like(ratio), abs=1e-3)
        else:
            assert np.abs(np.log(ratio)).max() > 0.05
