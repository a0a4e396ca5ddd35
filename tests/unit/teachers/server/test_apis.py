"""Both kinds of server: the same scores and answers, the same refusals, and malformed answers that are asked for again."""

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest

import minidist.teachers.server.connection as module
from minidist.errors import RoleError
from minidist.rollout.seeds import sample_seed
from minidist.teachers.payload import FLOOR
from minidist.teachers.server.teacher import ServerTeacher
from minidist.types import Finish, Rollout, Sampling, TeacherScores
from tests.support.server import PADDED, WIRES, Reply, Server, config, refused, table
from tests.support.tiny import VOCABULARY, random_rollouts, tiny_model, tiny_renderer

ROLLOUTS = random_rollouts([(3, 4), (1, 9), (6, 1), (2, 2)])
SAMPLING = Sampling(max_new_tokens=5, seed=4)
T = TypeVar("T")


@pytest.fixture(params=list(WIRES))
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.005)
    made = Server(request.param)
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher")
    tiny_model(vocabulary=PADDED).save_pretrained(path)
    return str(path)


def ask(
    model: str,
    server: Server,
    call: Callable[[ServerTeacher], Awaitable[T]],
    *,
    vocabulary: int | None = VOCABULARY,
    **fields: Any,
) -> T:
    async def run() -> T:
        teacher = ServerTeacher(config(model, server, **fields), tiny_renderer(), vocabulary=vocabulary)  # type: ignore[arg-type]
        try:
            return await call(teacher)
        finally:
            await teacher.close()

    return asyncio.run(run())


def score(model: str, server: Server, **fields: Any) -> TeacherScores:
    return ask(model, server, lambda teacher: teacher.score(ROLLOUTS[:1]), **fields)[0]


def write(model: str, server: Server, **fields: Any) -> Rollout:
    return ask(model, server, lambda teacher: teacher.extend([ROLLOUTS[0].prompt], SAMPLING), **fields)[0]


def expected(rollout: Rollout) -> np.ndarray:
    """The server's log-probabilities [T, padded vocabulary] at a rollout's tokens."""
    sequence, start = [*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()], len(rollout.prompt.tokens)
    return np.array([table(sequence, position) for position in range(start, len(sequence))])


@pytest.mark.parametrize(("payload", "top_k"), [("sampled", 4), ("top_k", 1), ("top_k", 4), ("top_k", 99)])
def test_scores_are_the_servers(model: str, server: Server, payload: str, top_k: int) -> None:
    found = ask(model, server, lambda teacher: teacher.score(ROLLOUTS), payload=payload, top_k=top_k)
    for rollout, scored in zip(ROLLOUTS, found, strict=True):
        lines, count = expected(rollout), len(rollout.tokens)
        assert scored.logprobs is not None
        assert np.abs(scored.logprobs - lines[range(count), rollout.tokens.tolist()]).max() < 1e-6
        if payload == "top_k":
            best = np.argsort(-lines[:, :VOCABULARY], axis=1)[:, :top_k]  # padded ids stay in the tail
            assert scored.top_ids is not None and scored.top_logprobs is not None and (scored.top_ids == best).all()
            assert np.abs(scored.top_logprobs - np.take_along_axis(lines, best, 1)).max() < 1e-6


def test_answers_are_the_servers_token_ids(model: str, server: Server) -> None:
    prompts = [rollout.prompt for rollout in ROLLOUTS]
    found = ask(
        model, server, lambda teacher: teacher.extend(prompts, Sampling(samples=2, max_new_tokens=5, seed=4)), vocabulary=None
    )
    assert [(rollout.prompt.row, rollout.sample) for rollout in found] == [(row, n) for row in range(4) for n in range(2)]
    for rollout in found:
        assert rollout.tokens.tolist() == [1 + sample_seed(4, rollout.prompt.row, rollout.sample) % 11, 5, 0]
        assert (
            rollout.logprobs is not None and rollout.logprobs.tolist() == [-0.5, -1.5, -2.5] and rollout.finish is Finish.STOP
        )
    assert write(model, server).logprobs is None, "without the padded ids the distribution is another one"


def test_sglang_bans_padded_ids_and_stops_at_the_students(model: str) -> None:
    server = Server("sglang")
    write(model, server)
    sampling = server.seen[-1][1]["sampling_params"]
    assert sampling["stop_token_ids"] == [0] and sampling["ignore_eos"] is False
    assert sampling["logit_bias"] == {str(token): -1e9 for token in range(VOCABULARY, PADDED)}
    assert sampling.items() >= {"top_k": -1, "min_p": 0, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 5}.items()
    server.close()


def test_the_last_token_of_a_vocabulary_which_sglang_shows_as_0_is_scored(model: str) -> None:
    server = Server("sglang")
    last = Rollout.written(ROLLOUTS[0].prompt, [PADDED - 1, 3], None, version=-1, stopped=False)

    def shown_as_0(body: dict[str, Any], number: int) -> Reply:
        status, headers, answer = server.answer("/generate", body)
        answer["meta_info"]["input_token_logprobs"][1][1] = 0
        return status, headers, answer

    server.behave = shown_as_0
    found = ask(model, server, lambda teacher: teacher.score([last]), payload="sampled", attempts=1)
    assert found[0].logprobs is not None and abs(found[0].logprobs[0] - expected(last)[0, PADDED - 1]) < 1e-6
    server.close()


Change = Callable[[Any], Any]
"""A change of an answer, in place; a result in its stead replaces the answer."""


def first(answer: Any) -> Any:
    return answer["choices"][0]


def tops(answer: Any) -> Any:
    return answer["meta_info"]["input_top_logprobs"]


def own(answer: Any) -> Any:
    return answer["meta_info"]["input_token_logprobs"]


def ranked(answer: Any) -> list[tuple[str, Any]]:
    """Entries of the last position of vLLM's answer in falling order."""
    return sorted(first(answer)["prompt_logprobs"][-1].items(), key=lambda entry: entry[1]["rank"])


LAST = str(ROLLOUTS[0].tokens[-1])


def put(value: Any) -> dict[str, Change]:
    """The last token's log-probability is another value."""
    return {
        "vllm": lambda answer: first(answer)["prompt_logprobs"][-1][LAST].update(logprob=value),
        "sglang": lambda answer: own(answer)[-1].__setitem__(0, value),
    }


def both(change: Change) -> dict[str, Change]:
    return {"vllm": change, "sglang": change}


def swap(entries: Any, name: Any) -> None:
    """The first two entries exchange their log-probabilities."""
    entries[0][name], entries[1][name] = entries[1][name], entries[0][name]


SCORES: dict[str, dict[str, Change]] = {
    "html": both(lambda answer: b"<html><body>502</body></html>"),
    "empty": both(lambda answer: b""),
    "cut": both(lambda answer: json.dumps(answer).encode()[:-9]),
    "not UTF-8": both(lambda answer: b'{"choices": "\xff\xfe"}'),
    "deep": both(lambda answer: b"[" * 100_000),
    "deep in place": both(lambda answer: b'{"choices":' + b'{"a":' * 100_000),
    "null": both(lambda answer: b"null"),
    "list": both(lambda answer: []),
    "huge number": both(lambda answer: b'{"choices": ' + b"9" * 5000 + b"}"),
    "no choices": both(lambda answer: {"choices": [], "meta_info": {}}),
    "nan": put(math.nan),
    "inf": put(math.inf),
    "null logprob": put(None),
    "above 0": put(0.5),
    "text": put("-1.0"),
    "true": put(True),
    "nested logprob": put([-1.0]),
    "another number than in the list": put(-0.001),
    "too few positions": {
        "vllm": lambda answer: first(answer)["prompt_logprobs"].pop(),
        "sglang": lambda answer: own(answer).pop(),
    },
    "too many positions": {
        "vllm": lambda answer: first(answer)["prompt_logprobs"].append(first(answer)["prompt_logprobs"][-1]),
        "sglang": lambda answer: own(answer).append(own(answer)[-1]),
    },
    "null position": {
        "vllm": lambda answer: first(answer)["prompt_logprobs"].__setitem__(-1, None),
        "sglang": lambda answer: tops(answer).__setitem__(-1, None),
    },
    "another token": {
        "vllm": lambda answer: first(answer)["prompt_logprobs"][-1].pop(LAST),
        "sglang": lambda answer: own(answer)[-1].__setitem__(1, int(LAST) + 1),
    },
    "missing class": {
        "vllm": lambda answer: [first(answer)["prompt_logprobs"][-1].pop(key) for key, _ in ranked(answer)[1:4] if key != LAST],
        "sglang": lambda answer: tops(answer)[-1].pop(),
    },
    "class twice": {
        "vllm": lambda answer: (
            first(answer)["prompt_logprobs"][-1].update({"0" + ranked(answer)[0][0]: ranked(answer)[0][1]})
            or first(answer)["prompt_logprobs"][-1].pop(next(key for key, _ in ranked(answer)[2:] if key != LAST))
        ),
        "sglang": lambda answer: tops(answer)[-1].__setitem__(1, tops(answer)[-1][0]),
    },
    "not falling": {
        "vllm": lambda answer: swap([entry for _, entry in ranked(answer)], "logprob"),
        "sglang": lambda answer: swap(tops(answer)[-1], 0),
    },
    "out of the vocabulary": {
        "vllm": lambda answer: first(answer)["prompt_logprobs"][-1].update({str(PADDED): {"logprob": -0.01, "rank": 1}}),
        "sglang": lambda answer: tops(answer)[-1][0].__setitem__(1, PADDED),
    },
    "beyond int32": {
        "vllm": lambda answer: first(answer)["prompt_logprobs"][-1].update({str(2**40): {"logprob": -0.01, "rank": 1}}),
        "sglang": lambda answer: tops(answer)[-1][0].__setitem__(1, 2**40),
    },
    "negative id": {
        "vllm": lambda answer: first(answer)["prompt_logprobs"][-1].update({"-1": {"logprob": -0.01, "rank": 1}}),
        "sglang": lambda answer: tops(answer)[-1][0].__setitem__(1, -1),
    },
    "more than probability 1": {
        "vllm": lambda answer: [entry.update(logprob=-0.1) for _, entry in ranked(answer)],
        "sglang": lambda answer: [entry.__setitem__(0, -0.1) for entry in [*tops(answer)[-1], own(answer)[-1]]],
    },
}


def changed(server: Server, change: Change, times: int) -> None:
    """The first `times` answers are changed."""

    def behave(body: dict[str, Any], number: int) -> Reply | None:
        if number >= times:
            return None
        status, headers, answer = server.wire.post("/v1/completions" if server.api == "vllm" else "/generate", body)
        result = change(answer)
        return (
            status,
            headers,
            result if isinstance(result, bytes) or result in ([], {"choices": [], "meta_info": {}}) else answer,
        )

    server.behave = behave


async def twice(server: Server, change: Change, call: Callable[[], Awaitable[T]]) -> T:
    """The result of a call whose first answer is changed; then all answers are, and the call ends in one short sentence."""
    changed(server, change, times=len(server.seen) + 1)
    requests, result = len(server.seen), await call()
    assert len(server.seen) == requests + 2
    changed(server, change, times=999)
    with pytest.raises(
        RoleError, match=r"gave no usable answer in 2 attempts \(.*\) over \d+\.\d s; the last error: .*"
    ) as caught:
        await call()
    sentence = str(caught.value)
    assert sentence.endswith(f"teacher.server.api={server.api} needs such a server")
    assert len(sentence) < 500 and sentence.isprintable() and len(server.seen) == requests + 4
    return result


@pytest.mark.parametrize("case", SCORES)
def test_malformed_scores_are_asked_for_again_and_then_refused_in_a_sentence(model: str, server: Server, case: str) -> None:
    async def scored(teacher: ServerTeacher) -> TeacherScores:
        (found,) = await twice(server, SCORES[case][server.api], lambda: teacher.score(ROLLOUTS[:1]))
        return found

    found = ask(model, server, scored, attempts=2, served="tiny")
    best = np.sort(expected(ROLLOUTS[0])[:, :VOCABULARY], axis=1)[:, :-5:-1]
    assert found.top_logprobs is not None and np.abs(found.top_logprobs - best).max() < 1e-6


def text(answer: Any, **fields: Any) -> None:
    """Another written answer: tokens, or finish, the reason why it ended."""
    if "choices" in answer:
        finish = fields.get("finish", first(answer)["finish_reason"])
        tokens = fields.get("tokens", first(answer)["token_ids"])
        numbers = {"token_logprobs": [fields.get("logprob", -1.0)] * (len(tokens) + fields.get("more", 0))}
        answer["choices"][0] = {"token_ids": tokens, "finish_reason": finish, "logprobs": numbers}
    else:
        meta = answer["meta_info"]
        tokens = fields.get("tokens", [token for _, token, _ in meta["output_token_logprobs"]])
        entries = [[fields.get("logprob", -1.0), token, None] for token in tokens] + [[-1.0]] * fields.get("more", 0)
        finish = fields.get("finish", meta["finish_reason"]["type"])
        answer["meta_info"] = meta | {"output_token_logprobs": entries, "finish_reason": {"type": finish, "matched": 0}}


TEXTS: dict[str, dict[str, Any]] = {
    "no token": {"tokens": []},
    "too many tokens": {"tokens": [1, 2, 3, 4, 5, 0]},
    "nested tokens": {"tokens": [[1, 2, 0]]},
    "text tokens": {"tokens": ["1", "0"]},
    "true": {"tokens": [True, 0]},
    "fractions": {"tokens": [1.5, 0]},
    "negative": {"tokens": [-1, 0]},
    "padded id": {"tokens": [VOCABULARY, 0]},
    "out of the vocabulary": {"tokens": [PADDED, 0]},
    "beyond int32": {"tokens": [2**31, 0]},
    "text after the end": {"tokens": [0, 4, 0]},
    "stopped at no end": {"tokens": [4, 5]},
    "another reason": {"finish": "abort"},
    "reason null": {"finish": None},
    "nan": {"logprob": math.nan},
    "above 0": {"logprob": 2.0},
    "null": {"logprob": None},
    "more log-probabilities than tokens": {"more": 1},
}


@pytest.mark.parametrize("case", TEXTS)
def test_malformed_texts_are_asked_for_again_and_then_refused_in_a_sentence(model: str, server: Server, case: str) -> None:
    async def written(teacher: ServerTeacher) -> Rollout:
        prompts = [ROLLOUTS[0].prompt]
        (found,) = await twice(server, lambda answer: text(answer, **TEXTS[case]), lambda: teacher.extend(prompts, SAMPLING))
        return found

    assert ask(model, server, written, attempts=2, served="tiny").tokens.tolist()[1:] == [5, 0]


def test_an_answer_at_the_token_limit_is_a_cut_answer_unless_it_ends_itself(model: str, server: Server) -> None:
    changed(server, lambda answer: text(answer, tokens=[1, 2, 3, 4, 5], finish="length"), times=9)
    assert write(model, server).finish is Finish.LENGTH
    changed(server, lambda answer: text(answer, tokens=[1, 2, 3, 4, 0], finish="length"), times=9)
    assert write(model, server).finish is Finish.STOP


@pytest.mark.parametrize("value", [-math.inf, -9999.0, -1e308])
def test_a_token_without_probability_counts_as_the_least_one(model: str, server: Server, value: float) -> None:
    changed(server, put(value)[server.api], times=9)
    scored = score(model, server, payload="sampled", attempts=1).logprobs
    assert scored is not None and scored[-1] == FLOOR and (scored[:-1] > -50).all()
    changed(server, lambda answer: text(answer, logprob=value), times=99)
    written = write(model, server, vocabulary=None).logprobs
    assert written is not None and (written == FLOOR).all()


HEADERS: dict[str, tuple[dict[str, str], bool]] = {
    "no gzip": ({"Content-Encoding": "gzip"}, False),
    "no deflate": ({"Content-Encoding": "deflate"}, False),
    "another charset": ({"Content-Type": "application/json; charset=utf-16"}, True),
    "no charset": ({"Content-Type": "application/json; charset=rot13"}, True),
    "shorter": ({"Content-Length": "40"}, False),
    "longer": ({"Content-Length": "99999"}, False),
    "no length": ({"Content-Length": "many"}, False),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie_never_reach_the_scores(model: str, server: Server, case: str) -> None:
    lie, harmless = HEADERS[case]

    def behave(body: dict[str, Any], number: int) -> Reply:
        status, headers, answer = server.wire.post("/v1/completions" if server.api == "vllm" else "/generate", body)
        return status, headers | lie, answer

    server.behave = behave
    if harmless:
        assert score(model, server, attempts=1).logprobs is not None
        return
    with pytest.raises(RoleError, match="gave no usable answer in 2 attempts"):
        score(model, server, attempts=2, timeout_s=0.3)


@pytest.mark.parametrize(
    "requested", ["3600", "1e9", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 99999999999 23:59:59 GMT"]
)
def test_pauses_are_capped(model: str, server: Server, requested: str, caplog: pytest.LogCaptureFixture) -> None:
    server.behave = refused(503, {"Retry-After": requested}, times=2)
    with caplog.at_level(logging.WARNING, "minidist"):
        score(model, server, pause_s=0.05)
    assert len(server.seen) == 3
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "503 go away; the request is sent again in 0." in lines[0]


def test_requests_that_wait_together_are_one_line(model: str, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.behave = refused(429, {"Retry-After": "0.3"}, times=4)
    with caplog.at_level(logging.WARNING, "minidist"):
        ask(model, server, lambda teacher: teacher.score(ROLLOUTS))
    assert len(server.seen) == 8 and len(caplog.records) == 1


def test_a_server_that_stays_busy_ends_in_a_sentence_with_the_time(model: str, server: Server) -> None:
    server.behave = refused(429, times=99)
    with pytest.raises(
        RoleError, match=r"no usable answer in 4 attempts .* over 0\.[1-9] s; the last error: 429 go away"
    ) as caught:
        score(model, server, attempts=4, pause_s=0.1)
    assert caught.value.__cause__ is None


def test_the_text_of_a_server_moves_no_cursor(model: str, server: Server) -> None:
    shout = "\x1b[2J\x1b]0;title\x07\u202eevil\ud800\r\n"
    server.behave = lambda body, number: (400, {}, {"error": {"message": shout}})
    with pytest.raises(RoleError, match="refuses a request of the teacher: 400") as caught:
        score(model, server)
    assert str(caught.value).isprintable() and str(caught.value).encode()
    server.behave = lambda body, number: (200, {}, shout.replace("\ud800", "").encode())
    with pytest.raises(RoleError) as caught:
        score(model, server, attempts=1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["schlüssel", "two words", "line\nbreak", "tab\t"])
def test_a_key_that_no_header_holds_is_refused_in_a_sentence(
    model: str, server: Server, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", key)
    with pytest.raises(RoleError, match=r"THE_KEY, which teacher\.server\.key_variable names, holds no API key") as caught:
        score(model, server, key_variable="THE_KEY")
    assert key not in str(caught.value)
