"""Requests with one answer each: what the engine gets, what is kept of its outputs, what is aborted; with a fake engine."""

from types import SimpleNamespace

import pytest

from minidist.rollout.vllm.requests import Answer, Call, Requests
from tests.support.vllm_core import FakeEngine, output_of

PROMPTS = [[1, 2], [3], [4, 5, 6]]


def submitted() -> tuple[FakeEngine, Requests, Call]:
    engine, call = FakeEngine(), Call()
    requests = Requests(engine)
    requests.submit(call, PROMPTS, SimpleNamespace(seed=0, max_tokens=5), [11, 12, 13])
    return engine, requests, call


def test_requests_differ_in_name_tokens_and_seed() -> None:
    engine, _, _ = submitted()
    assert [each.prompt_token_ids for each in engine.requests] == PROMPTS
    assert [each.sampling_params.seed for each in engine.requests] == [11, 12, 13]
    assert {each.sampling_params.max_tokens for each in engine.requests} == {5}
    assert len({each.request_id for each in engine.requests}) == 3


def test_answers_are_collected_in_the_order_in_which_they_finish() -> None:
    engine, requests, call = submitted()
    first, second, third = (each.request_id for each in engine.requests)
    requests.take([output_of(first, [7]), output_of(second, [8], "stop"), output_of(third, [], None, table="scores")])
    assert call.finished == [Answer(1, [8], [-8.0])] and len(requests) == 2
    requests.take([output_of(third, [9], "length"), output_of(first, [6, 5], "length")])
    assert call.finished[1:] == [Answer(2, [9], [-9.0], table="scores"), Answer(0, [7, 6, 5], [-7.0, -6.0, -5.0])]
    assert not call.unfinished and not len(requests)


def test_hidden_states_are_kept_as_vllm_gives_them() -> None:
    engine, requests, call = submitted()
    requests.take([output_of(engine.requests[1].request_id, [], "stop", hidden="states")])
    assert call.finished == [Answer(1, hidden="states")]


def test_prompt_tokens_that_were_cached_are_known() -> None:
    engine, requests, call = submitted()
    output = output_of(engine.requests[0].request_id, [7], "stop")
    output.prefill_stats = SimpleNamespace(num_cached_tokens=32)
    requests.take([output])
    assert [answer.cached for answer in call.finished] == [32]


def test_an_aborted_call_is_forgotten_and_late_outputs_are_dropped() -> None:
    engine, requests, call = submitted()
    first, second, third = (each.request_id for each in engine.requests)
    requests.take([output_of(second, [8], "stop")])
    assert requests.abort(call) == 2 and sorted(engine.aborted) == sorted([first, third])
    requests.take([output_of(first, [7], "stop")])
    assert [answer.number for answer in call.finished] == [1] and not len(requests)


def test_a_prompt_beyond_the_longest_sequence_is_refused_before_any_request() -> None:
    engine = FakeEngine()
    with pytest.raises(ValueError, match="a prompt of 21 tokens is longer than the engine's longest sequence, 20 tokens"):
        Requests(engine).submit(Call(), [[1], [2] * 21], SimpleNamespace(seed=0))
    assert not engine.requests
