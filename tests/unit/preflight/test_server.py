"""A teacher's server is checked before a run: a server that cannot be the teacher is refused in one sentence."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from minidist.config.context import ContextConfig
from minidist.config.teacher import TeacherConfig
from minidist.errors import ConfigError, ModelError
from minidist.preflight.server import check_server, check_writing
from tests.support.server import PADDED, Server, config, refused
from tests.support.tiny import VOCABULARY, random_rollouts, tiny_renderer

MODEL = "not read"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def checked(settings: TeacherConfig, *, tokens: int = 47, vocabulary: int = VOCABULARY) -> list[str]:
    prompt = random_rollouts([(3, 4)])[0].prompt
    return check_server(settings, tiny_renderer(), prompt=prompt, tokens=tokens, width=PADDED, vocabulary=vocabulary)


def test_a_good_server_is_a_line_of_the_plan(server: Server) -> None:
    assert checked(config(MODEL, server)) == [f"teacher served as tiny at {server.url}"]
    assert checked(config(MODEL, server, served="tiny"))


def test_a_server_that_cannot_bar_all_other_ids_is_refused_as_a_writer(server: Server) -> None:
    check_writing(config(MODEL, server), width=5024, vocabulary=4000)
    with pytest.raises(ConfigError, match=r"^teacher: 1,025 ids of the teacher are not shared .* set teacher.backend=vllm"):
        check_writing(config(MODEL, server), width=5025, vocabulary=4000)


def test_a_server_without_tokenize_is_a_line_of_the_plan(server: Server) -> None:
    server.behave = lambda body, number: (404, {}, {"detail": "Not Found"}) if "max_tokens" not in body else None
    assert "its tokenizer was not compared" in checked(config(MODEL, server))[1]


def test_a_server_too_short_for_the_teachers_own_prompts_is_refused_with_their_limit(server: Server) -> None:
    settings = config(MODEL, server).model_copy(update={"context": ContextConfig()})
    with pytest.raises(ConfigError, match=r"rollout\.max_new_tokens, and teacher\.context\.max_prompt_tokens$"):
        checked(settings, tokens=48)


def test_a_server_that_cannot_be_the_teacher_is_refused_in_a_sentence(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "wrong")
    good = config(MODEL, server)
    cases: list[tuple[TeacherConfig, int, str]] = [
        (config(MODEL, server, served="other"), 47, "teacher.server.model is 'other', and .* serves tiny"),
        (good, 48, "takes 48 tokens, a prompt with its answer needs 48 and one more; start it with --max-model-len 49"),
        (config(MODEL, server, key_variable="THE_KEY"), 47, "refuses the API key"),
        (config(MODEL, server, key_variable="NO_KEY"), 47, "environment variable NO_KEY"),
    ]
    for settings, tokens, sentence in cases:
        with pytest.raises(ConfigError, match=sentence):
            checked(settings, tokens=tokens)
    server.models = lambda path: (200, {}, {"data": [{"id": "a"}, {"id": "b"}]})
    with pytest.raises(ConfigError, match=r"serves a, b; set teacher\.server\.model"):
        checked(good)
    server.models = lambda path: (404, {}, b"nothing here")
    with pytest.raises(ConfigError, match=r"is no vLLM server .*; /v1/models gives 404 nothing here"):
        checked(good)
    server.close()
    with pytest.raises(ConfigError, match=f"no server answers at {server.url}"):
        checked(good)


def test_a_server_that_cannot_score_is_refused_before_the_run(server: Server) -> None:
    server.behave = lambda body, number: (200, {}, {"choices": [{"text": "a"}]}) if "max_tokens" in body else None
    with pytest.raises(ConfigError, match=r"prompt_logprobs: Field required.*teacher.server.api=vllm needs such a server"):
        checked(config(MODEL, server))
    server.behave = refused(400, times=99)
    with pytest.raises(ConfigError, match="refuses a request"):
        checked(config(MODEL, server))


def test_another_tokenizer_is_refused_before_the_run(server: Server) -> None:
    server.behave = lambda body, number: (200, {}, {"tokens": [3, 1, 4]}) if "max_tokens" not in body else None
    with pytest.raises(ModelError, match=r"different tokenizers: .* and at index 0"):
        checked(config(MODEL, server))


@pytest.fixture
def sglang() -> Iterator[Server]:
    made = Server("sglang")
    yield made
    made.close()


def test_a_good_sglang_server_is_a_line_of_the_plan(sglang: Server) -> None:
    assert checked(config(MODEL, sglang)) == [f"teacher served as tiny at {sglang.url}"]
    assert checked(config(MODEL, sglang, served="tiny"))


def test_an_sglang_server_that_cannot_be_the_teacher_is_refused_in_a_sentence(sglang: Server) -> None:
    with pytest.raises(ConfigError, match=r"takes 48 tokens, .* start it with --context-length 49"):
        checked(config(MODEL, sglang), tokens=48)
    sglang.behave = lambda body, number: (200, {}, {"tokens": [3, 1, 4]}) if "prompt" in body else None
    with pytest.raises(ModelError, match=r"different tokenizers: .* and at index 0"):
        checked(config(MODEL, sglang))
    sglang.behave = lambda body, number: (400, {}, {"error": {"message": "no tokenizer"}}) if "prompt" in body else None
    assert "its tokenizer was not compared (" in checked(config(MODEL, sglang))[1]
    embedding = {"model_path": "a", "is_generation": False}
    sglang.models = lambda path: (200, {}, embedding) if path == "/get_model_info" else None
    with pytest.raises(ConfigError, match="is_generation: Input should be True"):
        checked(config(MODEL, sglang))
    sglang.models = lambda path: (503, {}, b"") if path == "/health" else None
    with pytest.raises(ConfigError, match=r"no usable answer in 2 attempts .* the last error: 503"):
        checked(config(MODEL, sglang))


@pytest.mark.parametrize(("speaks", "asked", "path"), [("vllm", "sglang", "/health"), ("sglang", "vllm", "/v1/models")])
def test_a_server_of_another_kind_is_refused_by_name(speaks: str, asked: str, path: str) -> None:
    made = Server(speaks)
    kind = {"vllm": "vLLM", "sglang": "SGLang"}[asked]
    with pytest.raises(ConfigError, match=rf"is no {kind} server \(teacher.server.api={asked}\); {path} gives 404"):
        checked(config(MODEL, made, api=asked))
    made.close()


@pytest.mark.parametrize("answer", [b"<html>", b"[" * 100_000, b"null", json.dumps({"data": {}}).encode(), b"\xff", b""])
@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_check_ends_in_a_sentence_whatever_the_server_answers(api: str, answer: bytes) -> None:
    made = Server(api)
    made.models = lambda path: (200, {}, answer) if path != "/health" else None
    with pytest.raises(ConfigError, match="no usable answer"):
        checked(config(MODEL, made))
    made.models = lambda path: None
    made.behave = lambda body, number: (200, {}, answer)
    with pytest.raises(ConfigError, match="no usable answer"):
        checked(config(MODEL, made))
    made.close()


def test_a_plan_is_also_made_inside_an_event_loop(server: Server) -> None:
    async def inside() -> list[str]:
        return checked(config(MODEL, server))

    assert asyncio.run(inside())
