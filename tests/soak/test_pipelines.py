"""Slow: jobs of many rows that are killed at random, and a job over two Ray nodes, which stand on one machine here."""

import json
import random
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from minidist.data.tasks import generate
from tests.integration.conftest import SHAPE, save_model
from tests.support.chat_server import ChatServer, chat_server
from tests.support.commands import start

ROWS, SHARD_ROWS = 10_000, 250
LIMIT = 900


def reply(text: str, seed: int) -> str:
    """Steps and an answer that depend on the prompt and, for one prompt in three, on the seed."""
    number = zlib.crc32(text.encode()) % 90 + (seed % 3 if zlib.crc32(text.encode()) % 3 == 0 else 0)
    return f"Let me think of it. The answer is {number}."


def write(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "stage": "generate",
        "run": {"directory": str(folder / "run"), "tensorboard": False},
        "data": {"rows": {"path": str(folder / "rows.jsonl")}, "max_prompt_tokens": 48},
        "files": {"shard_rows": SHARD_ROWS, "rows_in_flight": 64},
        "key": "id",
    }
    file = folder / "generate.yaml"
    file.write_text(yaml.safe_dump({**config, **sections}))
    return file


def parts(file: Path) -> dict[str, bytes]:
    folder = file.parent / "run"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/part-*.jsonl"))}


def keys(file: Path) -> list[str]:
    return [json.loads(line)["key"] for part in parts(file).values() for line in part.decode().splitlines()]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server(reply) as running:
        yield running


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("roles", ["ray", "local"])
def test_a_job_of_10000_rows_killed_three_times_ends_as_an_undisturbed_one(
    tmp_path: Path, server: ChatServer, roles: str
) -> None:
    rows = [
        row | {"id": f"row {number}"} for number, row in enumerate(generate("arithmetic", split="train", rows=ROWS, seed=0))
    ]
    sections = {
        "server": {"url": server.url, "requests": 32},
        "rollout": {"max_new_tokens": 20},
        "program": {"type": "chain_of_thought", "form": "number", "gold": "answer", "filter": {"threshold": 0.6}},
        "cluster": {"roles": roles},
    }
    sections["rollout"] |= {"samples_per_prompt": 1}
    sections["program"] |= {"filter": {"type": "none"}}
    calm, killed = (write(tmp_path / name, rows, **sections) for name in ("calm", "killed"))
    command = start("generate", calm, fresh=True).wait(LIMIT)
    assert command.returncode == 0, command.stderr
    kept: dict[Path, int] = {}
    for seed in range(3):
        command = start("generate", killed, fresh=True)
        goal = len(parts(killed)) + random.Random(seed).randint(3, 9)
        until = time.monotonic() + LIMIT / 4
        while len(parts(killed)) < goal and command.returncode is None and time.monotonic() < until:
            time.sleep(0.05)
        command.process.send_signal(signal.SIGKILL)
        assert command.wait().returncode == -signal.SIGKILL
        found = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed/run/rows").glob("part-*.jsonl")}
        assert all(found[path] == time_ns for path, time_ns in kept.items())
        kept = found
    assert 9 <= len(kept) < ROWS // SHARD_ROWS
    command = start("generate", killed, fresh=True).wait(LIMIT)
    assert command.returncode == 0, command.stderr
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert parts(killed) == parts(calm)
    assert keys(killed) == [row["id"] for row in rows]


@pytest.mark.timeout(LIMIT)
def test_a_job_on_ray_that_is_interrupted_says_so_and_goes_on(tmp_path: Path, server: ChatServer) -> None:
    rows = [row | {"id": str(number)} for number, row in enumerate(generate("arithmetic", split="train", rows=2000, seed=0))]
    server.pause = 0.02
    drawn = {"max_new_tokens": 20, "samples_per_prompt": 1}
    file = write(tmp_path / "job", rows, server={"url": server.url, "requests": 32}, rollout=drawn)
    command = start("generate", file, fresh=True)
    while len(parts(file)) < 2:
        time.sleep(0.1)
        assert command.returncode is None, command.stderr
    command.process.send_signal(signal.SIGINT)
    assert command.wait(60).returncode == 130
    assert "the files written so far are kept" in command.stderr and "SIGTERM" not in command.stderr
    assert "Traceback" not in command.stderr
    server.pause = 0
    assert start("generate", file, fresh=True).wait(LIMIT).returncode == 0
    assert keys(file) == [row["id"] for row in rows]


@pytest.mark.timeout(LIMIT)
def test_two_engines_on_two_nodes_write_the_answers_of_one(nodes: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", SHAPE, 1)
    rows = [row | {"id": str(number)} for number, row in enumerate(generate("sort", split="train", rows=400, seed=0))]
    sections: dict[str, Any] = {
        "model": {"model": str(tmp_path / "model")},
        "rollout": {"max_new_tokens": 12, "samples_per_prompt": 2},
        "files": {"shard_rows": 40, "rows_in_flight": 32},
    }
    spread = {"address": nodes, "placement": "strict_spread", "threads": 1, "rollout": {"actors": 2, "cpus": 1}}
    two = write(tmp_path / "two", rows, **sections, cluster=spread)
    one = write(tmp_path / "one", rows, **sections, cluster={"threads": 1})
    for file in (two, one):
        command = start("generate", file, fresh=True).wait(LIMIT)
        assert command.returncode == 0, command.stderr
    answers = [
        [json.loads(line)["answers"] for part in parts(file).values() for line in part.decode().splitlines()]
        for file in (two, one)
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 400 and keys(two) == keys(one)
