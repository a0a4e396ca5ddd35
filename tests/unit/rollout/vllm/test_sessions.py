"""Resumable requests of a vLLM engine: what each turn reads, when a request is answered, what is freed; with a fake engine."""

from types import SimpleNamespace
from typing import Any

import pytest

from minidist.rollout.vllm.sessions import Sessions, Turn, TurnRequest, TurnResult
from minidist.types import Sampling
from tests.support.vllm_core import FakeEngine, output_of

STOPS = (0, 6)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def sessions(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Sessions:
    monkeypatch.setattr(
        Sessions, "_template", lambda *_: SimpleNamespace(sampling_params=SimpleNamespace(seed=0, max_tokens=1))
    )
    return Sessions(engine, STOPS)


def request(turns: list[Turn], finished: tuple[int, ...] = (), fraction: float = 1.0) -> TurnRequest:
    return TurnRequest("call", turns, finished, Sampling(max_new_tokens=8), logprobs=True, fraction=fraction)


def output(index: int, tokens: list[int], finish: str | None = "length") -> Any:
    return output_of(f"call/{index}", tokens, finish)


def test_a_later_turn_reads_the_last_token_of_the_turn_before_it(engine: FakeEngine, sessions: Sessions) -> None:
    sessions.submit(request([Turn(0, [7, 8], 2, seed=5)]))
    assert sessions.take([output(0, [3], None), output(0, [4])]) == []
    assert sessions.collect("call") == [TurnResult(0, [3, 4], [-3.0, -4.0], False)]
    sessions.submit(request([Turn(0, [9], 3, seed=5)]))
    assert [each.prompt_token_ids for each in engine.requests] == [[7, 8], [4, 9]]
    assert [each.sampling_params.max_tokens for each in engine.requests] == [2, 3]
    assert {each.sampling_params.seed for each in engine.requests} == {5}


def test_what_an_ended_turn_writes_late_is_dropped(engine: FakeEngine, sessions: Sessions) -> None:
    """A token of the step that was under way, and a second end, by which the turn would be counted twice."""
    sessions.submit(request([Turn(0, [7, 8], 4, seed=5), Turn(1, [7], 4, seed=6)]))
    sessions.take([output(0, [3, 6], "stop")])
    sessions.take([output(0, [9], None), output(0, [9])])
    assert not sessions.enough("call", 1.0), "the other turn is under way"
    results = sessions.collect("call")
    assert results == [TurnResult(0, [3, 6], [-3.0, -6.0], True)]
    sessions.submit(request([Turn(0, [2], 1, seed=5)]))
    assert engine.requests[-1].prompt_token_ids == [6, 2]
    sessions.take([output(0, [4])])
    assert results == [TurnResult(0, [3, 6], [-3.0, -6.0], True)]
    assert sessions.collect("call") == [TurnResult(0, [4], [-4.0], False)]


def test_each_id_that_ends_answers_stops_a_turn(sessions: Sessions) -> None:
    sessions.submit(request([Turn(index, [7], 9, seed=5) for index in range(3)]))
    sessions.take([output(0, [3, 0], "stop"), output(1, [3, 6], "stop"), output(2, [3, 5])])
    assert [result.stopped for result in sessions.collect("call")] == [True, True, False]


def test_outputs_of_other_requests_are_returned(sessions: Sessions) -> None:
    other = SimpleNamespace(request_id="12")
    assert sessions.take([other]) == [other]


def test_a_fraction_of_the_turns_is_enough_and_the_others_continue(sessions: Sessions) -> None:
    sessions.submit(request([Turn(index, [7], 1, seed=index) for index in range(4)]))
    enough = []
    for index in range(4):
        sessions.take([output(index, [3])])
        enough.append((sessions.enough("call", 0.5), sessions.enough("call", 1.0)))
    assert enough == [(False, False), (True, False), (True, False), (True, True)]
    assert [result.index for result in sessions.collect("call")] == [0, 1, 2, 3]
    assert sessions.collect("call") == []


def test_finished_sequences_are_freed_and_an_ended_call_waits_for_nothing(engine: FakeEngine, sessions: Sessions) -> None:
    sessions.submit(request([Turn(0, [7], 1, seed=1), Turn(1, [7], 1, seed=2)]))
    sessions.submit(request([], finished=(0, 5)))
    assert engine.aborted == ["call/0"] and len(sessions) == 1
    assert not sessions.enough("call", 0.5)
    sessions.end("call")
    assert engine.aborted == ["call/0", "call/1"] and len(sessions) == 0
    assert sessions.enough("call", 1.0) and sessions.collect("call") == []


@pytest.mark.parametrize(("tokens", "fitting"), [(4, 4), (9, 3), (40, 1), (41, 0)])
def test_capacity_is_bounded_by_blocks_and_by_sequences(sessions: Sessions, tokens: int, fitting: int) -> None:
    assert sessions.capacity(tokens) == fitting


@pytest.mark.parametrize(("groups", "fit"), [([16], 8), ([16, 16], 4), ([16, 32, 16], 3), ([128], 33)])
def test_layers_of_another_kind_take_blocks_of_their_own(groups: list[int], fit: int) -> None:
    """A parked sequence cannot be preempted: with room for a sequence too many, both engines would wait for ever."""
    kinds = [SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=size)) for size in groups]
    scheduler = SimpleNamespace(kv_cache_config=SimpleNamespace(num_blocks=34, kv_cache_groups=kinds))
    core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=64))
    assert Sessions(SimpleNamespace(engine_core=core, vllm_config=config), STOPS).capacity(64) == fit
