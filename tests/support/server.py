"""A small server that answers like vLLM's, over real HTTP; a test may change its answers."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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


def prompt_logprobs(sequence: list[int], classes: int) -> list[Any]:
    """prompt_logprobs as vLLM returns them: the token of the sequence first, then the likeliest."""
    positions: list[Any] = [None]
    for position in range(1, len(sequence)):
        line = table(sequence, position)
        order = [sequence[position], *np.argsort(-line)[:classes].tolist()]
        ranks = {int(token): rank for rank, token in enumerate(np.argsort(-line), start=1)}
        positions.append({str(token): {"logprob": float(line[token]), "rank": ranks[token]} for token in order})
    return positions


class Server:
    """Answers like vLLM; `behave` may replace the answer to a request, given its body and number."""

    def __init__(self) -> None:
        self.behave: Callable[[dict[str, Any], int], Reply | None] = lambda body, number: None
        self.seen: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.open = self.most = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(*outer.models(dict(self.headers)))

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

    def models(self, headers: dict[str, str]) -> Reply:
        if headers.get("Authorization", "Bearer right") != "Bearer right":
            return 401, {}, {"error": "Unauthorized"}
        return 200, {}, {"data": [{"id": "tiny", "max_model_len": 48}]}

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
        if path == "/tokenize":
            return 200, {}, {"tokens": tiny_renderer().tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        if "prompt_logprobs" not in body:
            tokens = [1 + body["seed"] % 11, 5, 0]
            logprobs = {"token_logprobs": [-0.5, -1.5, -2.5]}
            return 200, {}, {"choices": [{"token_ids": tokens, "logprobs": logprobs, "finish_reason": "stop"}]}
        if (asked := body["prompt_logprobs"]) > CAP:
            return (
                400,
                {},
                {"error": {"message": f"Requested prompt logprobs of {asked}, which is greater than max allowed: {CAP}"}},
            )
        return 200, {}, {"choices": [{"prompt_logprobs": prompt_logprobs(body["prompt"], asked)}]}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def config(
    model: str, server: Server, *, payload: Any = "top_k", top_k: int = 4, served: str | None = None, **fields: Any
) -> TeacherConfig:
    settings = ServerConfig(url=server.url, model=served, **fields)
    return teacher_config(model=model, backend="server", server=settings, payload=payload, top_k=top_k)


def refused(status: int, headers: dict[str, str] | None = None, times: int = 1) -> Callable[[dict[str, Any], int], Any]:
    """A behaviour that answers the first `times` requests with an error status."""
    return lambda body, number: (status, headers or {}, {"error": {"message": "go away"}}) if number < times else None
