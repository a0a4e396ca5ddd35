"""A headless Chromium, driven over the DevTools protocol: pages, their messages, light and dark, and pictures of them."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LIMIT = 120
"""Seconds for one answer of the browser on a busy machine."""


class Page:
    """One page. `errors`: what it has logged as errors, and the exceptions that nothing caught."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser; events that come meanwhile are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=LIMIT))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert", "warning"):
            self.errors.append(json.dumps(parameters["args"])[:600])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')[:200]}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"][:200])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:600])
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true."""
        end = time.monotonic() + LIMIT
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} did not become true in {LIMIT} s")
            time.sleep(0.1)

    def open(self, address: str, *, width: int, dark: bool = False) -> None:
        """Load a page at this width and scheme, and wait until its figures are drawn."""
        self.resize(width)
        self.scheme(dark=dark)
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && 'ready' in document.documentElement.dataset")

    def resize(self, width: int, height: int = 1000) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, *, dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])


def executable() -> str | None:
    """Chromium on this machine."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def browser(directory: Path) -> Iterator[Page]:
    """A page of a browser that keeps its files in a directory. Raises RuntimeError where there is none."""
    if (program := executable()) is None:
        raise RuntimeError("this test needs Chromium, which is not installed: apt-get install chromium")
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0")
    command = [program, *options, "--no-first-run", f"--user-data-dir={directory}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_address(directory, process), max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(30)


def _address(directory: Path, process: subprocess.Popen[bytes]) -> str:
    """Of the first page's socket, once the browser has written its port."""
    import httpx

    file, end = directory / "DevToolsActivePort", time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < end:
        if file.is_file() and (lines := file.read_text().splitlines()):
            with httpx.Client(trust_env=False) as client:
                pages = client.get(f"http://127.0.0.1:{lines[0]}/json/list").json()
            if found := [page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"]:
                return found[0]
        time.sleep(0.1)
    raise RuntimeError(f"{process.args} did not start (exit code {process.poll()})")
