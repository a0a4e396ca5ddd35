"""A small server with /v1/chat/completions over real HTTP; its replies are a function of the request that a test gives."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer:
    """`reply(text, seed)` answers a user's text. `fail(number)`: the status of request `number` in place of an answer, or 0."""

    def __init__(self, reply: Callable[[str, int], str]) -> None:
        self.reply = reply
        self.fail: Callable[[int], int] = lambda number: 0
        self.models = ["tiny"]
        self.pause = 0.0
        self.requests: list[dict[str, Any]] = []
        self.url = ""

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(self.pause)
        self.requests.append(body)
        if status := self.fail(len(self.requests) - 1):
            return status, {"error": {"message": "not now"}}
        text = self.reply(body["messages"][-1]["content"], body["seed"])
        words = text.split()[: body["max_tokens"]]
        cut = len(words) < len(text.split())
        choice = {"message": {"role": "assistant", "content": " ".join(words)}, "finish_reason": "length" if cut else "stop"}
        return 200, {"choices": [choice], "usage": {"completion_tokens": len(words) + (not cut)}}


@contextmanager
def chat_server(reply: Callable[[str, int], str]) -> Iterator[ChatServer]:
    """The server on a free port of loopback, until the block ends."""
    server = ChatServer(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": name} for name in server.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*server.answer(body))

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
