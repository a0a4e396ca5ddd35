"""Small servers that speak the wire formats of vLLM and SGLang, over real HTTP; a test may change their answers."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np

from minidist.config.teacher import ServerConfig, TeacherConfig
from tests.support.config import teacher_config
from tests.support.tiny import VOCABULARY, tiny_renderer

PADDED = VOCABULARY + 3
CAP = 20
Reply = tuple[int, dict[str, str], Any]


def table(sequence: list[int], position: int) -> np.ndarray:
    """Log-probabilities over the padded vocabulary of the token at `position`, different for every prefix."""
    logits = np.random.default_rng(sequence[:position]).normal(size=PADDED) * 2
    return logits - np.log(np.exp(logits).sum())


def listed(sequence: list[int], position: int, classes: int) -> list[tuple[float, int]]:
    """The likeliest tokens of a position, with their log-probabilities, in falling order."""
    line = table(sequence, position)
    return [(float(line[token]), int(token)) for token in np.argsort(-line)[:classes]]


class WireError(Exception):
    """A request that a real server would refuse, or answer in another way."""


def strict(fields: dict[str, Any], known: dict[str, type | tuple[type, ...]], where: str) -> None:
    """Refuse unknown fields, which servers ignore silently, and values of another type."""
    for name, value in fields.items():
        if name not in known:
            raise WireError(f"{where}: unknown field {name}")
        if not isinstance(value, known[name]) or (isinstance(value, bool) and known[name] is not bool):
            raise WireError(f"{where}: {name} is {value!r}")


def token_ids(ids: list[Any]) -> list[int]:
    if not ids or not all(type(token) is int and 0 <= token < PADDED for token in ids):
        raise WireError(f"token ids out of the vocabulary: {ids}")
    return ids


_NUMBER = (int, float)
_PENALTIES = {"min_p": _NUMBER, "repetition_penalty": _NUMBER, "presence_penalty": _NUMBER, "frequency_penalty": _NUMBER}
_DRAWN = {"temperature": _NUMBER, "top_p": _NUMBER, "top_k": int} | _PENALTIES


class VLLMWire:
    """The paths, request fields and answers of vLLM's OpenAI-style server."""

    COMPLETION = _DRAWN | {
        "model": str,
        "prompt": list,
        "max_tokens": int,
        "seed": int,
        "prompt_logprobs": int,
        "logprobs": int,
        "ignore_eos": bool,
        "stop_token_ids": list,
        "logit_bias": dict,
        "return_token_ids": bool,
    }
    written: ClassVar[list[float]] = [-0.5, -1.5, -2.5]

    def get(self, path: str) -> Reply:
        return (200, {}, {"data": [{"id": "tiny", "max_model_len": 48}]}) if path == "/v1/models" else (404, {}, b"Not Found")

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        if path == "/tokenize":
            return tokenized(body)
        if path != "/v1/completions":
            return 404, {}, {"detail": "Not Found"}
        strict(body, self.COMPLETION, path)
        sequence = token_ids(body["prompt"])
        if body["max_tokens"] < 1 or body.get("top_k", 0) < -1:
            raise WireError("max_tokens or top_k is out of range")
        if len(bias := body.get("logit_bias", {})) > 1024 or any(not 0 <= int(token) < PADDED for token in bias):
            raise WireError("logit_bias has too many tokens, or one out of the vocabulary")
        if "prompt_logprobs" not in body:
            logprobs = {"token_logprobs": self.written}
            tokens = [1 + body["seed"] % 11, 5, 0]
            return 200, {}, {"choices": [{"token_ids": tokens, "logprobs": logprobs, "finish_reason": "stop"}]}
        if (asked := body["prompt_logprobs"]) > CAP:
            raise WireError(f"Requested prompt logprobs of {asked}, which is greater than max allowed: {CAP}")
        return 200, {}, {"choices": [{"prompt_logprobs": self.positions(sequence, asked)}]}

    def positions(self, sequence: list[int], classes: int) -> list[Any]:
        """prompt_logprobs: the token of the sequence first, then the likeliest."""
        positions: list[Any] = [None]
        for position in range(1, len(sequence)):
            line = table(sequence, position)
            order = [sequence[position], *(token for _, token in listed(sequence, position, classes))]
            ranks = {int(token): rank for rank, token in enumerate(np.argsort(-line), start=1)}
            positions.append({str(token): {"logprob": float(line[token]), "rank": ranks[token]} for token in order})
        return positions


class SGLangWire:
    """The paths, request fields and answers of SGLang's native server."""

    GENERATE: ClassVar[dict[str, Any]] = {
        "input_ids": list,
        "sampling_params": dict,
        "stream": bool,
        "return_logprob": bool,
        "logprob_start_len": int,
        "top_logprobs_num": int,
    }
    SAMPLING = _DRAWN | {
        "max_new_tokens": int,
        "stop_token_ids": list,
        "ignore_eos": bool,
        "sampling_seed": int,
        "logit_bias": dict,
    }
    written: ClassVar[list[float]] = [-0.5, -1.5, -2.5]

    def get(self, path: str) -> Reply:
        info = {"model_path": "/models/tiny", "tokenizer_path": "/models/tiny", "is_generation": True}
        served = {"model_path": "/models/tiny", "served_model_name": "tiny", "context_length": None, "max_req_input_len": 48}
        known: dict[str, Any] = {"/health": b"", "/get_model_info": info, "/get_server_info": served | {"version": "0.5.6"}}
        return (200, {}, known[path]) if path in known else (404, {}, b"Not Found")

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        if path == "/tokenize":
            return tokenized(body)
        if path != "/generate":
            return 404, {}, {"detail": "Not Found"}
        strict(body, self.GENERATE, path)
        sampling, sequence = body["sampling_params"], token_ids(body["input_ids"])
        strict(sampling, self.SAMPLING, "sampling_params")
        if sampling.get("top_k", -1) == 0 or not 0 < sampling.get("top_p", 1) <= 1 or not body["return_logprob"]:
            raise WireError("top_k must be -1 or at least 1, top_p in (0, 1], return_logprob true")
        if any(not 0 <= int(token) < PADDED for token in sampling.get("logit_bias", {})):
            raise WireError("logit_bias is of a token out of the vocabulary")
        if (start := body["logprob_start_len"]) >= len(sequence):
            raise WireError(f"logprob_start_len {start} is beyond the input")
        return 200, {}, {"text": "", "meta_info": self.meta(sequence, start, body["top_logprobs_num"], sampling)}

    def meta(self, sequence: list[int], start: int, classes: int, sampling: dict[str, Any]) -> dict[str, Any]:
        """meta_info; lists of a prompt start with an entry without a log-probability."""
        found: dict[str, Any] = {"id": "a", "prompt_tokens": len(sequence), "completion_tokens": 0}
        if sampling["max_new_tokens"] == 0:
            found["finish_reason"], found["output_token_logprobs"] = {"type": "length", "length": 0}, []
        else:
            tokens = [1 + sampling["sampling_seed"] % 11, 5, 0]
            found["finish_reason"] = {"type": "stop", "matched": 0}
            found["output_token_logprobs"] = [[value, token, None] for value, token in zip(self.written, tokens, strict=True)]
        rest = range(start + 1, len(sequence)) if start >= 0 else range(0)
        own = [[float(table(sequence, position)[sequence[position]]), sequence[position], None] for position in rest]
        found["input_token_logprobs"] = [[None, sequence[start], None], *own] if start >= 0 else []
        if classes:
            tops = [[[*entry, None] for entry in listed(sequence, position, classes)] for position in rest]
            found["input_top_logprobs"] = [None, *tops]
        return found


def tokenized(body: dict[str, Any]) -> Reply:
    strict(body, {"model": str, "prompt": str, "add_special_tokens": bool}, "/tokenize")
    ids = tiny_renderer().tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
    return 200, {}, {"tokens": ids, "count": len(ids), "max_model_len": 48}


WIRES: dict[str, Any] = {"vllm": VLLMWire, "sglang": SGLangWire}


class Server:
    """Answers as a server of the API does; `behave` may replace the answer to a request, given its body and number,
    and `models` that to a GET, given its path."""

    def __init__(self, api: str = "vllm") -> None:
        self.api = api
        self.wire = WIRES[api]()
        self.behave: Callable[[dict[str, Any], int], Reply | None] = lambda body, number: None
        self.models: Callable[[str], Reply | None] = lambda path: None
        self.seen: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.open = self.most = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(*outer.get(self.path, dict(self.headers)))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(*outer.post(self.path, body, dict(self.headers)))

            def reply(self, status: int, headers: dict[str, str], answer: Any) -> None:
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    for name, value in ({"Content-Length": str(len(data))} | headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client did not wait

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def get(self, path: str, headers: dict[str, str]) -> Reply:
        if headers.get("Authorization", "Bearer right") != "Bearer right":
            return 401, {}, {"error": "Unauthorized"}
        return self.models(path) or self.wire.get(path)

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self._lock:
            self.seen.append((path, body, headers))
            number = len(self.seen) - 1
            self.open += 1
            self.most = max(self.most, self.open)
        try:
            return self.behave(body, number) or self.answer(path, body)
        finally:
            with self._lock:
                self.open -= 1

    def answer(self, path: str, body: dict[str, Any]) -> Reply:
        try:
            return self.wire.post(path, body)
        except WireError as error:
            return 400, {}, {"error": {"message": str(error)}}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def config(
    model: str, server: Server, *, payload: Any = "top_k", top_k: int = 4, served: str | None = None, **fields: Any
) -> TeacherConfig:
    settings = ServerConfig(**{"url": server.url, "api": server.api, "model": served} | fields)
    return teacher_config(model=model, backend="server", server=settings, payload=payload, top_k=top_k)


def refused(status: int, headers: dict[str, str] | None = None, times: int = 1) -> Callable[[dict[str, Any], int], Any]:
    """A behaviour that answers the first `times` requests with an error status."""
    return lambda body, number: (status, headers or {}, {"error": {"message": "go away"}}) if number < times else None
