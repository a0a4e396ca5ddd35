"""A teacher on an HTTP server: requests, answers, repeated requests and errors."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import minidist.teachers.server.connection as module
from minidist.config.teacher import TeacherConfig
from minidist.errors import MinidistError, RoleError
from minidist.rollout.seeds import sample_seed
from minidist.teachers.server import connection
from minidist.teachers.server.teacher import ServerTeacher
from minidist.teachers.server.vllm import VLLMApi
from minidist.teachers.server.wire import Writing
from minidist.types import Finish, Payload, Rollout, Sampling, Vocabulary
from tests.support.server import PADDED, Server, config, refused, table
from tests.support.tiny import VOCABULARY, random_rollouts, tiny_model, tiny_renderer

ROLLOUTS = random_rollouts([(3, 4), (1, 9), (6, 1), (2, 2)])
T = TypeVar("T")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher")
    tiny_model(vocabulary=PADDED).save_pretrained(path)
    return str(path)


def ask(config: TeacherConfig, call: Callable[[ServerTeacher], Awaitable[T]], vocabulary: int | None = VOCABULARY) -> T:
    async def run() -> T:
        teacher = ServerTeacher(config, tiny_renderer(), vocabulary=vocabulary)
        try:
            return await call(teacher)
        finally:
            await teacher.close()

    return asyncio.run(run())


def expected(rollout: Rollout) -> np.ndarray:
    """The server's log-probabilities [T, padded vocabulary] at a rollout's tokens."""
    sequence, start = [*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()], len(rollout.prompt.tokens)
    return np.array([table(sequence, position) for position in range(start, len(sequence))])


@pytest.mark.parametrize(("payload", "top_k"), [("sampled", 4), ("top_k", 1), ("top_k", 4), ("top_k", 99)])
def test_scores_are_the_servers_in_the_rollouts_order(model: str, server: Server, payload: str, top_k: int) -> None:
    def late(body: dict[str, Any], number: int) -> None:
        time.sleep(0.1 if number == 0 else 0)  # the first answer comes last

    server.behave = late
    found = ask(config(model, server, payload=payload, top_k=top_k), lambda teacher: teacher.score(ROLLOUTS))
    for rollout, scored in zip(ROLLOUTS, found, strict=True):
        lines, count = expected(rollout), len(rollout.tokens)
        assert scored.logprobs is not None and scored.logprobs.dtype == np.float32
        assert np.abs(scored.logprobs - lines[range(count), rollout.tokens.tolist()]).max() < 1e-6
        if payload == "sampled":
            assert scored.payload is Payload.SAMPLED and scored.top_ids is None
            continue
        best = np.argsort(-lines[:, :VOCABULARY], axis=1)[:, :top_k]  # padded ids stay in the tail
        assert scored.payload is Payload.TOP_K and scored.top_ids is not None and scored.top_logprobs is not None
        assert (scored.top_ids.dtype, scored.top_logprobs.dtype) == (np.int32, np.float32)
        assert scored.top_ids.shape == scored.top_logprobs.shape == (count, min(top_k, VOCABULARY))
        assert (scored.top_ids == best).all()
        assert np.abs(scored.top_logprobs - np.take_along_axis(lines, best, 1)).max() < 1e-6
    assert {body["prompt_logprobs"] for _, body, _ in server.seen} == {{"sampled": 0}.get(payload, min(top_k + 3, PADDED))}


def test_extend_sends_a_seed_for_each_sample_and_keeps_token_ids(model: str, server: Server) -> None:
    prompts = [rollout.prompt for rollout in ROLLOUTS]
    sampling = Sampling(samples=2, max_new_tokens=5, seed=4)
    wide = config(model, server)
    found = ask(wide, lambda teacher: teacher.extend(prompts, sampling), None)
    assert [(rollout.prompt.row, rollout.sample) for rollout in found] == [(row, n) for row in range(4) for n in range(2)]
    for rollout in found:
        assert rollout.tokens.tolist() == [1 + sample_seed(4, rollout.prompt.row, rollout.sample) % 11, 5, 0]
        assert rollout.logprobs.tolist() == [-0.5, -1.5, -2.5] and rollout.finish is Finish.STOP
    asked = [body for path, body, _ in server.seen if path == "/v1/completions"]
    assert all(body["return_token_ids"] and body["stop_token_ids"] == [0] and body["ignore_eos"] for body in asked)
    assert {len(body["prompt"]) for body in asked} == {3, 1, 6, 2}
    # The distribution of the server's log-probabilities is known only at temperature 1.
    cold = ask(wide, lambda teacher: teacher.extend(prompts, replace(sampling, temperature=0.5)), None)
    assert all(rollout.logprobs is None for rollout in cold)
    assert server.seen[-1][1].items() >= {"max_tokens": 5, "temperature": 0.5, "top_p": 1.0, "top_k": 0, "min_p": 0}.items()
    greedy = ask(wide, lambda teacher: teacher.extend(prompts[:1], replace(sampling, temperature=0)), None)
    truncated = ask(wide, lambda teacher: teacher.extend(prompts[:1], replace(sampling, top_p=0.9)), None)
    assert greedy[0].logprobs is not None and truncated[0].logprobs is None
    ask(wide, lambda teacher: teacher.extend(prompts[:1], sampling))
    padded = range(VOCABULARY, PADDED)
    assert server.seen[-1][1]["logit_bias"] == {str(token): -100.0 for token in padded}, "padded ids are never sampled"


def test_a_server_is_asked_to_stop_at_every_id_that_ends_answers(model: str, server: Server) -> None:
    async def run() -> list[Rollout]:
        teacher = ServerTeacher(config(model, server), tiny_renderer(5), vocabulary=Vocabulary(13, [7]))
        try:
            return await teacher.extend([ROLLOUTS[0].prompt], Sampling(max_new_tokens=3))
        finally:
            await teacher.close()

    length = {"token_ids": [1, 2, 3], "logprobs": {"token_logprobs": [-1.0] * 3}, "finish_reason": "length"}
    ended = length | {"token_ids": [1, 5], "logprobs": {"token_logprobs": [-1.0] * 2}, "finish_reason": "stop"}
    for choice, finish in ((length, Finish.LENGTH), (ended, Finish.STOP)):
        server.behave = lambda body, number, choice=choice: (200, {}, {"choices": [choice]})
        [rollout] = asyncio.run(run())
        assert (rollout.finish, rollout.tokens.tolist()) == (finish, choice["token_ids"])
        assert rollout.text == tiny_renderer().decode(np.array([1] if finish is Finish.STOP else [1, 2, 3]))
    body = [body for path, body, _ in server.seen if path == "/v1/completions"][-1]
    assert (body["stop_token_ids"], body["ignore_eos"]) == ([0, 5], True)
    assert body["logit_bias"].keys() == {str(token) for token in [7, *range(13, PADDED)]}


@pytest.mark.parametrize(("vocabulary", "barred"), [(4000, 1024), (Vocabulary(5024, range(1, 1025)), 1024), (3999, None)])
def test_a_vllm_server_is_handed_no_more_ids_than_it_takes(vocabulary: int, barred: int | None) -> None:
    writing = Writing([1], Sampling(max_new_tokens=2), 1, (0,), vocabulary, 5024)
    if barred is None:
        with pytest.raises(
            RoleError, match=r"1,025 ids of the teacher are not shared .* bars 1,024 of them at most; set teacher.backend=vllm"
        ):
            VLLMApi(5024).write("tiny", writing)
    else:
        body = VLLMApi(5024).write("tiny", writing).body
        assert body is not None and len(body["logit_bias"]) == barred
        assert not any(isinstance(value, list) and len(value) > 1024 for value in body.values())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_request_to_a_busy_server_is_sent_again(model: str, server: Server, status: int) -> None:
    server.behave = refused(status, times=2)
    found = ask(config(model, server, requests=1), lambda teacher: teacher.score(ROLLOUTS[:1]))
    assert len(found) == 1 and len(server.seen) == 3


def test_the_pause_of_retry_after_is_kept(model: str, server: Server) -> None:
    server.behave = refused(429, {"Retry-After": "0.4"})
    start = time.monotonic()
    ask(config(model, server), lambda teacher: teacher.score(ROLLOUTS[:1]))
    assert time.monotonic() - start >= 0.4


def test_pauses_double(model: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.08)
    times: list[float] = []

    def busy(body: dict[str, Any], number: int) -> Any:
        times.append(time.monotonic())
        return (503, {}, {}) if number < 3 else None

    server.behave = busy
    ask(config(model, server), lambda teacher: teacher.score(ROLLOUTS[:1]))
    for gap, whole in zip(np.diff(times), (0.08, 0.16, 0.32), strict=True):
        assert gap >= whole / 2  # the rest is random, so that many callers do not return at the same time


def test_a_request_that_times_out_is_sent_again(model: str, server: Server) -> None:
    def slow(body: dict[str, Any], number: int) -> None:
        time.sleep(0.8 if number == 0 else 0)

    server.behave = slow
    found = ask(config(model, server, timeout_s=0.2), lambda teacher: teacher.score(ROLLOUTS[:1]))
    assert len(found) == 1 and len(server.seen) >= 2


@pytest.mark.parametrize("how", ["busy", "gone"])
def test_a_server_that_never_answers_is_named(model: str, server: Server, how: str) -> None:
    server.behave = refused(503, times=99)
    settings = config(model, server, attempts=3, served="tiny")
    if how == "gone":
        server.close()
    with pytest.raises(RoleError, match=f"the server at {server.url} gave no usable answer in 3 attempts") as caught:
        ask(settings, lambda teacher: teacher.score(ROLLOUTS[:1]))
    assert ("go away" in str(caught.value)) == (how == "busy")
    assert len(server.seen) == (3 if how == "busy" else 0)


def test_a_refused_request_is_not_sent_again_and_the_error_quotes_the_server(model: str, server: Server) -> None:
    server.behave = refused(400, times=99)
    with pytest.raises(MinidistError, match="refuses a request of the teacher: 400 go away"):
        ask(config(model, server, requests=1), lambda teacher: teacher.score(ROLLOUTS))
    assert len(server.seen) == 1


def test_the_error_of_a_top_k_above_the_servers_limit_names_both_remedies(server: Server, tmp_path: Path) -> None:
    tiny_model(vocabulary=40).save_pretrained(tmp_path)
    with pytest.raises(RoleError, match=r"--max-logprobs 21, or set teacher.top_k=17 \(the server's message: 400") as caught:
        ask(config(str(tmp_path), server, top_k=18), lambda teacher: teacher.score(ROLLOUTS), 37)
    assert "gives at most 20 log-probabilities a position, and teacher.top_k=18 needs 21" in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        {},
        {"choices": []},
        {"choices": [{"prompt_logprobs": None}]},
        {"choices": [{"prompt_logprobs": [None, {}]}]},
        {"choices": [{"prompt_logprobs": [None, *({"1": {"logprob": -1.0, "rank": 1}} for _ in range(6))]}]},
    ],
)
def test_a_malformed_answer_is_an_error(model: str, server: Server, answer: Any) -> None:
    server.behave = lambda body, number: (200, {}, answer)
    with pytest.raises(RoleError, match="server"):
        ask(config(model, server), lambda teacher: teacher.score(ROLLOUTS[:1]))


def test_an_answer_larger_than_any_scores_is_not_read(model: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_LEAST_LIMIT", 1 << 16)
    server.behave = lambda body, number: (200, {}, b"[" + b" " * (8 << 20) + b"]")
    with pytest.raises(RoleError, match=r"an answer of more than \d+ MiB, which scores of the request cannot have"):
        ask(config(model, server), lambda teacher: teacher.score(ROLLOUTS[:1]))


def test_an_answer_without_token_ids_is_an_error(model: str, server: Server) -> None:
    server.behave = lambda body, number: (200, {}, {"choices": [{"text": "ab", "token_ids": None}]})
    sampling = Sampling(max_new_tokens=5, seed=4)
    with pytest.raises(RoleError, match=r"no usable answer.*token_ids"):
        ask(config(model, server), lambda teacher: teacher.extend([ROLLOUTS[0].prompt], sampling))


def test_at_most_the_configured_number_of_requests_is_open(model: str, server: Server) -> None:
    server.behave = lambda body, number: time.sleep(0.05)
    ask(config(model, server, requests=3), lambda teacher: teacher.score(ROLLOUTS * 4))
    assert len(server.seen) == 16 and 1 < server.most <= 3


def test_the_key_comes_from_the_environment(model: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(model, server, key_variable="THE_KEY")
    monkeypatch.delenv("THE_KEY", raising=False)
    with pytest.raises(RoleError, match="environment variable THE_KEY"):
        ask(settings, lambda teacher: teacher.score(ROLLOUTS))
    monkeypatch.setenv("THE_KEY", "right")
    ask(settings, lambda teacher: teacher.score(ROLLOUTS))
    assert {headers["Authorization"] for _, _, headers in server.seen} == {"Bearer right"}
    monkeypatch.setenv("THE_KEY", "wrong")
    with pytest.raises(RoleError, match=r"refuses the API key; set teacher\.server\.key_variable") as caught:
        ask(settings, lambda teacher: teacher.score(ROLLOUTS))
    assert "wrong" not in str(caught.value)


def test_a_cancelled_call_cancels_its_requests(model: str, server: Server) -> None:
    server.behave = lambda body, number: time.sleep(0.2)

    async def cancelled(teacher: ServerTeacher) -> None:
        task = asyncio.ensure_future(teacher.score(ROLLOUTS * 10))
        while len(server.seen) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.4)

    ask(config(model, server, requests=2), cancelled)
    assert len(server.seen) <= 4  # of 40: none was sent after the cancellation
