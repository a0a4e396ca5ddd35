"""Each canary on a healthy case and on the fault that it detects."""

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest
from transformers import PreTrainedModel

from minidist.config.learner import LearnerConfig
from minidist.data.batching import collate
from minidist.errors import CanaryError
from minidist.rollout.hf import sample
from minidist.run.canaries import check_engine, check_floored, check_teacher
from minidist.types import Measures, Rollout, Sampling, Writer
from tests.support.learners import local_learner
from tests.support.tiny import VOCABULARY, random_rollouts, tiny_model, tiny_renderer


@pytest.fixture(scope="module")
def writer() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def rollouts(writer: PreTrainedModel) -> list[Rollout]:
    """Samples of the student at temperature 1."""
    prompts = [rollout.prompt for rollout in random_rollouts([(2, 1), (5, 1), (3, 1)])]
    return sample(writer, tiny_renderer(), prompts, Sampling(samples=3, max_new_tokens=8), version=0)


def measured(model: PreTrainedModel, rollouts: list[Rollout], sampling: Sampling | None = None) -> Measures:
    learner = local_learner(model, LearnerConfig(chunk_tokens=5), {})
    distribution = () if sampling is None else sampling.processed
    try:
        return asyncio.run(learner.measure(collate("x", rollouts), *distribution))
    finally:
        asyncio.run(learner.close())


def test_engine_and_learner_of_the_same_weights_agree(writer: PreTrainedModel, rollouts: list[Rollout]) -> None:
    assert check_engine(measured(writer, rollouts), rollouts, 1e-3) < 1e-5


WARPED = [Sampling(max_new_tokens=8, temperature=t, top_p=p) for t, p in ((0.7, 1.0), (1.0, 0.8), (1.4, 0.7), (0.0, 0.8))]


@pytest.mark.parametrize("sampling", WARPED, ids=str)
def test_engine_and_learner_agree_on_the_distribution_that_was_sampled(writer: PreTrainedModel, sampling: Sampling) -> None:
    """And on no other: another temperature or top_p in the engine is noticed, beyond the tolerance of 16 bits."""
    prompts = [rollout.prompt for rollout in random_rollouts([(2, 1), (5, 1), (3, 1)])]

    def written(**changes: float) -> list[Rollout]:
        return sample(writer, tiny_renderer(), prompts, replace(sampling, samples=3, **changes), version=0)  # type: ignore[arg-type]

    assert check_engine(measured(writer, written(), sampling), written(), 1e-3) < 1e-5
    wrong = [{"temperature": 2.0}] + ([{"temperature": 0.3}, {"top_p": 0.5}] if sampling.temperature else [])
    for changes in wrong:
        others = written(**changes)
        with pytest.raises(CanaryError, match="engine and learner disagree"):
            check_engine(measured(writer, others, sampling), others, 0.05)


def test_a_learner_of_other_weights_is_noticed(rollouts: list[Rollout]) -> None:
    with pytest.raises(CanaryError, match=r"engine and learner disagree: .* nats on average .* more than 0.001"):
        check_engine(measured(tiny_model(seed=5), rollouts), rollouts, 1e-3)


def test_labels_shifted_by_one_are_noticed(writer: PreTrainedModel, rollouts: list[Rollout]) -> None:
    stream = collate("x", rollouts, [None] * len(rollouts), objective="")  # type: ignore[list-item]
    late = replace(stream, rows=tuple(replace(row, outputs=row.outputs + 1) for row in stream.rows))
    learner = local_learner(writer, LearnerConfig(), {})
    measures = asyncio.run(learner.measure(late))
    asyncio.run(learner.close())
    with pytest.raises(CanaryError, match="engine and learner disagree"):
        check_engine(measures, rollouts, 1e-3)


def test_an_engine_whose_log_probabilities_are_nan_is_noticed(writer: PreTrainedModel, rollouts: list[Rollout]) -> None:
    broken = [replace(rollouts[0], logprobs=rollouts[0].logprobs * math.nan), *rollouts[1:]]
    with pytest.raises(CanaryError, match="differ by nan"):
        check_engine(measured(writer, rollouts), broken, 1e-3)


def test_differences_that_cancel_are_noticed(writer: PreTrainedModel, rollouts: list[Rollout]) -> None:
    measures = measured(writer, rollouts)
    signs = np.where(np.arange(len(measures.student_logprob)) % 2, 0.1, -0.1)
    with pytest.raises(CanaryError, match="engine and learner disagree"):
        check_engine(replace(measures, student_logprob=measures.student_logprob + signs), rollouts, 0.05)


def test_tokens_that_the_teacher_chose_do_not_count(writer: PreTrainedModel, rollouts: list[Rollout]) -> None:
    """In teacher-mixed sampling the engine has no log-probability of these tokens; of the student's tokens it must have one."""
    measures = measured(writer, rollouts)
    coins = [np.arange(len(r.tokens)) % 2 == 0 for r in rollouts]
    silent = [replace(r, coins=c, logprobs=np.where(c, np.nan, r.logprobs)) for r, c in zip(rollouts, coins, strict=True)]
    off = replace(measures, student_logprob=measures.student_logprob + np.where(np.concatenate(coins), -70.0, 0.25))
    assert check_engine(off, silent, 0.5) == pytest.approx(0.25, abs=1e-4)
    all_by_teacher = [replace(r, coins=np.ones(len(r.tokens), dtype=bool), logprobs=r.logprobs * math.nan) for r in rollouts]
    assert check_engine(measures, all_by_teacher, 1e-3) is None
    with pytest.raises(CanaryError, match="differ by nan"):
        check_engine(measures, [replace(r, logprobs=r.logprobs * math.nan) for r in silent], 1e-3)


def test_text_that_the_student_did_not_write_does_not_count(writer: PreTrainedModel, rollouts: list[Rollout]) -> None:
    """The data set's answers have no log-probabilities, and the teacher's samples have those of the teacher."""
    by_teacher = [replace(r, writer=Writer.TEACHER, logprobs=np.full(len(r.tokens), -9.0)) for r in rollouts[::2]]
    by_dataset = [replace(r, writer=Writer.DATASET, logprobs=None) for r in rollouts[:2]]
    mixed = [by_dataset[0], *rollouts[:3], by_teacher[0], by_dataset[1], *rollouts[3:], *by_teacher[1:]]
    measures = measured(writer, mixed)
    assert check_engine(measures, mixed, 1e-3) < 1e-5
    by_student = np.concatenate([np.full(len(r.tokens), r.writer is Writer.STUDENT) for r in mixed])
    off = replace(measures, student_logprob=measures.student_logprob + np.where(by_student, 0.25, -70.0))
    assert check_engine(off, mixed, 0.5) == pytest.approx(0.25, abs=1e-4), "the mean is over the student's tokens alone"
    with pytest.raises(CanaryError, match="engine and learner disagree"):
        check_engine(off, mixed, 0.2)


def scored(*logprobs: float) -> Measures:
    return Measures(np.zeros(len(logprobs)), np.zeros(len(logprobs)), np.array(logprobs))


def test_a_trained_teacher_passes() -> None:
    assert check_teacher(scored(-0.5, -1.5), VOCABULARY, 0.02) == -1.0
    assert check_teacher(scored(-8.0), VOCABULARY, 0.02) == -8.0, "worse than uniform is surprise, not ignorance"
    assert check_teacher(Measures(np.zeros(1), np.zeros(1)), VOCABULARY, 0.02) is None
    uniform = -math.log(13)
    assert check_teacher(scored(uniform - 2, uniform + 2), VOCABULARY, 0.02) is not None, "a trained one, on poor text"
    with pytest.raises(CanaryError):
        check_teacher(scored(uniform - 0.3, uniform + 0.3), VOCABULARY, 0.02)


@pytest.mark.parametrize("off", [0.0, 0.01, -0.01])
def test_a_uniform_teacher_stops_the_run(off: float) -> None:
    with pytest.raises(CanaryError, match=r"uniform guess over 13 tokens is -2.565"):
        check_teacher(scored(-math.log(13) + off), VOCABULARY, 0.02)


def test_a_teacher_whose_log_probabilities_are_nan_stops_the_run() -> None:
    with pytest.raises(CanaryError):
        check_teacher(scored(-1.0, math.nan), VOCABULARY, 0.02)


def test_a_teacher_that_gives_many_tokens_no_probability_is_refused() -> None:
    check_floored(None, 0.05)
    check_floored(0.05, 0.05)
    with pytest.raises(CanaryError, match=r"no probability: 6.0% .* more than canaries.floored_frac=0.05; let the teacher"):
        check_floored(0.06, 0.05)
