"""`launch/ray_head.sh` on free ports of loopback: a Ray cluster of one node, with its job service."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minidist.cluster.jobs import JobService
from minidist.errors import JobError

ROOT = Path(__file__).parents[2]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    found = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return found


@contextmanager
def ray_head(folder: Path, *options: str, within_s: float = 60) -> Iterator[str]:
    """The address of the job service. `folder`: for the token of this cluster alone, and what Ray prints."""
    port, dashboard, client, agent, metrics = free_ports(5)
    token = folder / "token"
    token.write_text("a" * 64)
    at = ["--port", port, "--dashboard-port", dashboard, "--ray-client-server-port", client]
    at += ["--dashboard-agent-listen-port", agent, "--metrics-export-port", metrics]
    at += ["--min-worker-port", 0, "--max-worker-port", 0, "--object-store-memory", 200_000_000]
    files = tempfile.mkdtemp(prefix="head-", dir="/tmp")  # Ray's sockets have paths of at most 107 characters
    command = [ROOT / "launch" / "ray_head.sh", "127.0.0.1", "--temp-dir", files, *at, *options]
    set_here = {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_metrics_report_interval_ms": "500"}
    before = {name: os.environ.get(name) for name in (*set_here, "RAY_API_SERVER_ADDRESS")}
    os.environ.update(set_here)
    with (folder / "head.txt").open("w") as output:
        head = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output, start_new_session=True)
    try:
        yield _answering(f"http://127.0.0.1:{dashboard}", head, folder / "head.txt", within_s)
    finally:
        head.terminate()
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(files, ignore_errors=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _answering(address: str, head: "subprocess.Popen[bytes]", output: Path, within_s: float) -> str:
    until = time.monotonic() + within_s
    while True:
        try:
            JobService(address)
        except JobError as error:
            assert head.poll() is None and time.monotonic() < until, f"{error}\n{output.read_text()}"
            time.sleep(0.2)
        else:
            return address
