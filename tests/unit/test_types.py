"""What travels between the roles."""

import doctest
from types import ModuleType

import numpy as np
import pytest

from minidist.types import Finish, Payload, Prompt, Rollout, Sampling, Writer, scores, vocabulary

PROMPTS = [Prompt(row, np.array([row]), str(row)) for row in (4, 2)]


@pytest.mark.parametrize("payload", Payload)
def test_a_payload_serves_its_own_needs_and_those_of_poorer_payloads(payload: Payload) -> None:
    order = ["sampled", "top_k", "hidden"]
    assert [payload.serves(needed) for needed in order] == [order.index(needed) <= order.index(payload) for needed in order]


@pytest.mark.parametrize("module", [scores, vocabulary])
def test_the_worked_examples_hold(module: ModuleType) -> None:
    done = doctest.testmod(module)
    assert done.attempted and not done.failed


def test_jobs_are_the_prompts_in_order_each_with_all_its_samples() -> None:
    jobs = Sampling(max_new_tokens=3, samples=2).jobs(PROMPTS)
    assert [(prompt.row, number) for prompt, number in jobs] == [(4, 0), (4, 1), (2, 0), (2, 1)]


@pytest.mark.parametrize(("stopped", "finish"), [(True, Finish.STOP), (False, Finish.LENGTH)])
def test_a_written_rollout_has_one_version_and_typed_arrays(stopped: bool, finish: Finish) -> None:
    rollout = Rollout.written(PROMPTS[0], [5, 0], [-0.5, -1.0], version=3, stopped=stopped, sample=1, text="5")
    assert (rollout.tokens.dtype, rollout.versions.dtype) == (np.int32, np.int32)
    assert rollout.logprobs is not None and rollout.logprobs.dtype == np.float32
    assert (rollout.tokens.tolist(), rollout.logprobs.tolist(), rollout.versions.tolist()) == ([5, 0], [-0.5, -1.0], [3, 3])
    assert (rollout.finish, rollout.sample, rollout.text, rollout.writer) == (finish, 1, "5", Writer.STUDENT)


def test_a_rollout_that_nobody_sampled_has_no_logprobs() -> None:
    assert Rollout.written(PROMPTS[0], [5], None, version=-1, stopped=True).logprobs is None
