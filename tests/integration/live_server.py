"""A real vLLM server on this machine, started once for the whole test run, side by side with everything else that starts."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import MAX_TOKENS, SHAPE, save_model

LIMIT = 240  # seconds for a start on a busy machine
LOGPROBS = 29  # the whole vocabulary


@dataclass
class Live:
    """The process, and where it will answer."""

    process: subprocess.Popen[bytes]
    url: str
    model: Path
    log: Path


def start(model: Path, root: Path) -> Live:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (root / "tmp").mkdir()
    (root / "template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no third process for a model on one device
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(root / "tmp"),
    }
    settings = {
        "--model": str(model),
        "--served-model-name": "teacher",
        "--chat-template": str(root / "template.jinja"),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": str(MAX_TOKENS + 1),
        "--max-logprobs": str(LOGPROBS),
        "--kv-cache-memory-bytes": str(32 * 2**20),
        "--max-num-seqs": "32",
        "--max-num-batched-tokens": "4096",
    }
    flags = ["--enforce-eager", "--no-enable-chunked-prefill"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
    command += [word for pair in settings.items() for word in pair]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    return Live(process, f"http://127.0.0.1:{port}", model, root / "log")


@pytest.fixture(scope="session", autouse=True)
def starting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live | None]:
    """The server from the first test on, if any test will want it: it takes longest to start."""
    if not any("server" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    root = tmp_path_factory.mktemp("server")
    save_model(root / "model", SHAPE, 1)
    live = start(root / "model", root)
    try:
        yield live
    finally:
        live.process.terminate()
        try:
            live.process.wait(30)
        except subprocess.TimeoutExpired:
            live.process.kill()


@pytest.fixture(scope="session")
def server(starting: Live | None) -> Live:
    """The server, once it answers."""
    assert starting is not None
    for _ in range(LIMIT * 4):
        try:
            httpx.get(f"{starting.url}/health").raise_for_status()
            return starting
        except httpx.TransportError:
            assert starting.process.poll() is None, f"ended too early: {starting.log.read_text()[-2000:]}"
            time.sleep(0.25)
    raise AssertionError(f"no server in time: {starting.log.read_text()[-2000:]}")
