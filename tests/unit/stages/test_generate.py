"""`minidist generate` with a local server: the same bytes again, exactly once after kills, and refusals before it starts."""

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

from minidist.data import reasoning
from minidist.data.rendering import character_tokenizer
from minidist.data.tasks import generate
from tests.support.chat_server import ChatServer, chat_server
from tests.support.commands import Command, start
from tests.support.tiny import tiny_model


def reply(text: str, seed: int) -> str:
    """Steps and an answer that depend on the prompt and, for one prompt in three, on the seed."""
    number = zlib.crc32(text.encode()) % 90 + (seed % 3 if zlib.crc32(text.encode()) % 3 == 0 else 0)
    return f"Let me think of it. The answer is {number}."


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with chat_server(reply) as running:
        yield running


def write(folder: Path, url: str, rows: list[dict[str, Any]] | None = None, **sections: Any) -> Path:
    """A configuration and its rows."""
    source = folder / "rows.jsonl"
    rows = generate("arithmetic", split="train", rows=60, seed=0) if rows is None else rows
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "stage": "generate",
        "run": {"directory": str(folder / "run"), "tensorboard": False},
        "server": {"url": url, "attempts": 2, "pause_s": 0.1, "timeout_s": 20, "requests": 8},
        "data": {"rows": {"path": str(source)}},
        "rollout": {"samples_per_prompt": 3, "max_new_tokens": 20},
        "files": {"shard_rows": 10, "rows_in_flight": 16},
        "cluster": {"roles": "local"},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    file = folder / "generate.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def run(file: Path) -> Command:
    return start("generate", file).wait()


def results(file: Path) -> dict[str, bytes]:
    folder = file.parent / "run"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/part-*.jsonl"))}


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for name, part in results(file).items()
        if name.startswith("rows")
        for line in part.decode().splitlines()
    ]


PROGRAM = {"type": "chain_of_thought", "form": "number", "gold": "answer", "filter": {"threshold": 0.6}}


def test_plain_samples_keep_the_columns_and_count_tokens(tmp_path: Path, server: ChatServer) -> None:
    file = write(tmp_path, server.url)
    assert (command := run(file)).returncode == 0, command.stderr
    rows = rows_of(file)
    assert [row["key"] for row in rows] == [str(number) for number in range(60)]
    assert all(len(row["answers"]) == 3 and row["tokens"] == 3 * 10 and row["finish"] == ["stop"] * 3 for row in rows)
    assert rows[0]["steps"] and rows[0]["answer"].isdigit()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["rows"], summary["rows_failed"], summary["tokens"]) == (60, 0, 60 * 30)


def test_a_program_keeps_consistent_answers_without_their_steps(tmp_path: Path, server: ChatServer) -> None:
    file = write(tmp_path, server.url, program=PROGRAM)
    assert (command := run(file)).returncode == 0, command.stderr
    kept = [json.loads(line) for line in (tmp_path / "run/kept.jsonl").read_text().splitlines()]
    rows = rows_of(file)
    assert 20 < len(kept) < 60 and len(kept) == sum(row["kept"] for row in rows)
    assert all(set(row) == {"key", "prompt", "answer", "steps", "gold"} and "think" not in row["answer"] for row in kept)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["rows_kept"] == len(kept) and 0 <= summary["accuracy"] <= 1
    assert f"{len(kept)} kept" in command.stderr


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_what_is_written_loads_with_datasets_and_trains_and_is_scored_as_it_is(
    tmp_path: Path, server: ChatServer, format: str
) -> None:
    from datasets import load_dataset

    file = write(tmp_path, server.url, program=PROGRAM, files={"format": format})
    assert (command := run(file)).returncode == 0, command.stderr
    found = load_dataset(str(tmp_path / "run/rows"), cache_dir=str(tmp_path / "cache"))["train"]
    assert found["key"] == [str(number) for number in range(60)] and set(found["kept"]) == {True, False}
    tokenizer = character_tokenizer(reasoning.ALPHABET)
    tiny_model(vocabulary=len(tokenizer), max_position_embeddings=256).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = {"path": str(tmp_path / "run/rows"), "answer": "{{ answer }}", "bad_rows": "skip"}
    place = {"run": {"directory": str(tmp_path / "next")}, "cluster": {"roles": "local"}}
    trained = {"train": rows, "max_prompt_tokens": 200, "max_tokens": 220}
    sft = {"stage": "sft", "student": {"model": str(tmp_path / "model")}, "data": trained, **place}
    teacher = {"model": str(tmp_path / "model"), "payload": "sampled"}
    score = {"stage": "score", "output": "table", "teacher": teacher, "key": "key", "data": {"rows": rows}, **place}
    kept = sum(found["kept"])
    for config, line in ((sft, f"train: {kept} rows"), (score, f"rows: 60 of {tmp_path}/run/rows")):
        (tmp_path / "next.yaml").write_text(yaml.safe_dump(config))
        command = start("check", tmp_path / "next.yaml").wait()
        assert command.returncode == 0 and line in command.stdout, command.stderr + command.stdout


def test_a_second_run_writes_the_same_bytes(tmp_path: Path, server: ChatServer) -> None:
    files = [write(folder, server.url, program=PROGRAM) for folder in (tmp_path / "a", tmp_path / "b") if not folder.mkdir()]
    assert [run(file).returncode for file in files] == [0, 0]
    assert results(files[0]) == results(files[1]) and len(results(files[0])) == 6


def test_other_seeds_and_keys_give_other_samples(tmp_path: Path, server: ChatServer) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    files = [
        write(tmp_path / "a", server.url),
        write(tmp_path / "b", server.url, run={"seed": 1, "directory": str(tmp_path / "b/run")}),
    ]
    assert [run(file).returncode for file in files] == [0, 0]
    first, second = ([row["answers"] for row in rows_of(file)] for file in files)
    assert first != second


def test_a_job_killed_three_times_ends_as_an_undisturbed_one(tmp_path: Path, server: ChatServer) -> None:
    rows = generate("arithmetic", split="train", rows=200, seed=0)
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    calm, killed = (write(tmp_path / name, server.url, rows, program=PROGRAM) for name in ("calm", "killed"))
    assert run(calm).returncode == 0
    server.pause = 0.01
    kills, kept = 0, {}
    try:
        for seed in range(3):
            command = start("generate", killed)
            goal = len(results(killed)) + 3
            deadline = time.monotonic() + 60
            while len(results(killed)) < goal and command.returncode is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(random.Random(seed).random() * 0.2)
            command.process.send_signal(signal.SIGKILL)
            kills += command.wait().returncode == -signal.SIGKILL
            found = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed/run/rows").glob("part-*.jsonl")}
            assert all(found[path] == time_ns for path, time_ns in kept.items())  # whole shards are not written again
            kept = found
    finally:
        server.pause = 0.0
    assert kills == 3 and 9 <= len(kept) < 20
    assert run(killed).returncode == 0
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert results(killed) == results(calm)
    assert (tmp_path / "killed/run/kept.jsonl").read_bytes() == (tmp_path / "calm/run/kept.jsonl").read_bytes()


def test_a_finished_job_asks_nothing(tmp_path: Path, server: ChatServer) -> None:
    file = write(tmp_path, server.url)
    assert run(file).returncode == 0
    asked = len(server.requests)
    assert run(file).returncode == 0 and len(server.requests) == asked


def test_failed_rows_stand_apart_with_their_reasons(tmp_path: Path, server: ChatServer) -> None:
    rows = generate("arithmetic", split="train", rows=30, seed=0)
    rows[25]["prompt"] = ""
    file = write(tmp_path, server.url, rows)
    assert (command := run(file)).returncode == 0, command.stderr
    [failed] = [json.loads(line) for line in (tmp_path / "run/failed/part-000002.jsonl").read_text().splitlines()]
    assert failed == {"key": "25", "error": "the prompt is empty"} and len(rows_of(file)) == 29
    assert "1 failed" in command.stderr


def test_a_dead_server_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    with chat_server(reply) as dying:
        dying.fail = lambda number: 503 if number > 50 else 0
        file = write(tmp_path, dying.url)
        command = run(file)
        assert command.returncode == 1 and "gave no usable answer in 2 attempts (server.attempts)" in command.stderr
        assert "Traceback" not in command.stderr
        before = results(file)
        dying.fail = lambda number: 0
        assert run(file).returncode == 0
    assert before.items() <= results(file).items() and len(rows_of(file)) == 60


ROW = {"prompt": "2 + 2?", "answer": "4"}
CHOICE = {"prompt": "Which is red?", "options": ["sky", "blood"], "response_a": "sky", "response_b": "blood"}


@pytest.mark.parametrize(
    ("rows", "sections", "sentence"),
    [
        (
            [ROW | {"id": "a"}, ROW, ROW | {"id": "a"}],
            {"key": "id"},
            "row 1 of .* has the key None; id must be a text or a number",
        ),
        ([ROW | {"id": "a"}, ROW | {"id": "b"}, ROW | {"id": "a"}], {"key": "id"}, "rows 0 and 2 of .* have the same id, 'a'"),
        (
            [ROW],
            {"program": {"type": "branch_solve_merge"}},
            "no column 'question', which program.type=branch_solve_merge needs",
        ),
        ([ROW], {"program": {"gold": "label"}}, "no column 'label', which accuracy .program.gold, grade.gold. needs"),
        ([ROW], {"program": {"type": "chain_of_though"}}, "chain_of_thought"),
        ([ROW], {"program": {"templates": "/nowhere"}}, "program.templates: no folder at /nowhere"),
        ([ROW], {"data": {"rows": {"path": "rows.jsonl", "prompt": "{{ question }}"}}}, "no data file|no column 'question'"),
        ([{"prompt": " "}], {}, "row 0 of .* cannot be used: the prompt is empty"),
        ([ROW], {"program": {}, "rollout": {"temperature": 0, "samples_per_prompt": 4}}, "the same answer in every sample"),
        (
            [ROW],
            {"program": {"gold": "prompt", "form": "option"}},
            "row 0 .* its gold answer '2 . 2.' is none of the form option",
        ),
        (
            [CHOICE],
            {"program": {"filter": {"perturbations": ["shuffled_options"]}}},
            "perturbations=shuffled_options changes options, of which no prompt is made",
        ),
        (
            [CHOICE],
            {"program": {"type": "direct", "filter": {"perturbations": ["swapped_responses"]}}},
            "perturbations=swapped_responses changes response_a and response_b, of which no prompt is made",
        ),
        ([ROW], {"files": {"tokens": True}}, "a server answers in text alone; set files.tokens=false"),
        ([ROW], {"model": {"model": "x"}}, "set exactly one of model"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_it_starts(
    tmp_path: Path, rows: list[dict[str, Any]], sections: dict[str, Any], sentence: str
) -> None:
    import re

    file = write(tmp_path, "http://127.0.0.1:9", rows, **sections)
    for verb in ("check", "generate"):
        command = start(verb, file).wait()
        assert command.returncode == 2 and re.search(sentence, command.stderr), command.stderr
        assert len(command.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_directory_of_another_configuration_is_refused(tmp_path: Path, server: ChatServer) -> None:
    assert run(write(tmp_path, server.url)).returncode == 0
    command = run(write(tmp_path, server.url, rollout={"samples_per_prompt": 2, "max_new_tokens": 20}))
    assert (
        command.returncode == 2 and "holds a run of another configuration: rollout.samples_per_prompt was 3" in command.stderr
    )


def test_a_template_without_its_placeholder_is_refused_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/chain_of_thought.jinja").write_text("Think, and answer.")
    file = write(tmp_path, "http://127.0.0.1:9", program={"templates": str(tmp_path / "prompts")})
    for verb in ("check", "generate"):
        command = start(verb, file).wait()
        assert command.returncode == 2 and "chain_of_thought.jinja does not use {{ prompt }}" in command.stderr
        assert len(command.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_half_written_directory_of_another_configuration_is_refused_and_left_alone(tmp_path: Path) -> None:
    with chat_server(reply) as dying:
        dying.fail = lambda number: 503 if number > 90 else 0
        file = write(tmp_path, dying.url)
        assert run(file).returncode == 1
        before = results(file)
        assert 0 < len(before) < 6
        dying.fail = lambda number: 0
        for name, value, sentence in (("shard_rows", 20, "was 10 and is now 20"), ("format", "parquet", "was 'jsonl' and is")):
            command = run(write(tmp_path, dying.url, files={name: value}))
            assert command.returncode == 2 and f"another configuration: files.{name} {sentence}" in command.stderr
            assert len(command.stderr.strip().splitlines()) == 1 and results(file) == before


def test_check_says_what_the_job_will_be(tmp_path: Path, server: ChatServer) -> None:
    command = start("check", write(tmp_path, server.url, program=PROGRAM)).wait()
    assert command.returncode == 0
    assert "rows: 60 of" in command.stdout and "3 samples of chain_of_thought, filter majority" in command.stdout
    assert "6 files of 10 rows (jsonl), 16 rows at one time" in command.stdout
