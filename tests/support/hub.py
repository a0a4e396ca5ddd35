"""A Hugging Face hub on loopback: tokens, repositories and commits as its client speaks of them, kept in memory."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What the hub knows and was asked.

    `tokens`: those that it accepts. `fails`: parts of paths, each with the status of its answer. `created`: repositories, with
    whether they are private. `files`: the content of files by repository and path. `requests`: method, path and token of each.
    """

    address: str
    tokens: set[str] = field(default_factory=lambda: {"hf_secret"})
    fails: dict[str, int] = field(default_factory=dict)
    created: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.requests.append((self.command, path, token))
        if token not in hub.tokens and path != "/api/validate-yaml":
            return self._send(401, {"error": "Invalid user token."})
        for part, status in hub.fails.items():
            if part in path:
                return self._send(status, {"error": "refused"})
        if path == "/api/whoami-v2":
            return self._send(200, {"name": "me", "type": "user"})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        name = "/".join(path.split("/")[3:5])
        if name not in hub.created:
            return self._send(404, {"error": "Repository not found"})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]
            return self._send(200, {"files": modes})
        if "/commit/" in path:
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        return self._send(200, {"id": name, "sha": "0" * 40, "siblings": []})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.address}/{name}"
        if name in self.hub.created:
            return self._send(409, {"error": "You already created this model repo", "url": url})
        self.hub.created[name] = asked.get("visibility") == "private"
        return self._send(200, {"url": url, "name": name})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.hub.files.setdefault(name, {})[line["value"]["path"]] = content
        url = f"{self.hub.address}/{name}/commit/{'1' * 40}"
        self._send(200, {"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})

    def _send(self, status: int, values: dict[str, Any]) -> None:
        text = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub that answers until the context ends."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield handler.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
