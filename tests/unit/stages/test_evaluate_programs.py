"""`minidist evaluate` of systems: programs compared by accuracy, share kept and tokens."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from minidist.data.tasks import generate
from minidist.stages.evaluate_programs import figures, over_seeds
from tests.support.chat_server import ChatServer, chat_server
from tests.support.commands import Command, start
from tests.support.tiny import tiny_model, tiny_renderer

ROWS = generate("arithmetic", split="test", rows=40, seed=0)
GOLD = {row["prompt"]: row["answer"] for row in ROWS}


def reply(text: str, seed: int) -> str:
    """Steps with the right answer where steps are asked for; asked directly, a right answer to every fourth prompt, at most."""
    prompt = text.split("\nThink step by step")[0]
    if prompt != text:
        return f"First this, then that. The answer is {GOLD[prompt]}."
    number = ROWS.index(next(row for row in ROWS if row["prompt"] == prompt))
    return GOLD[prompt] if number % 4 == 0 else f"{10_000 + number}"


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with chat_server(reply) as running:
        yield running


def write(folder: Path, url: str, **changes: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    asked = {"server": {"url": url, "attempts": 2, "pause_s": 0.1, "timeout_s": 20}}
    config = {
        "stage": "evaluate",
        "run": {"directory": str(folder / "run"), "tensorboard": False},
        "systems": {
            "System 1": asked,
            "System 2": {**asked, "program": {"type": "chain_of_thought"}},
            "voted": {
                **asked,
                "program": {"type": "chain_of_thought", "filter": {"threshold": 0.6}},
                "rollout": {"samples_per_prompt": 3, "max_new_tokens": 20},
            },
        },
        "grade": {"gold": "answer", "form": "number"},
        "data": {"rows": {"path": str(folder / "rows.jsonl")}},
        "rollout": {"max_new_tokens": 20, "temperature": 0},
        "cluster": {"roles": "local"},
        **changes,
    }
    file = folder / "evaluate.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def run(file: Path, *overrides: str) -> Command:
    return start("evaluate", file, *overrides).wait()


@pytest.fixture(scope="module")
def evaluated(server: ChatServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    file = write(tmp_path_factory.mktemp("evaluate"), server.url)
    command = run(file)
    assert command.returncode == 0, command.stderr
    return file, command


def result(file: Path) -> dict[str, dict[str, Any]]:
    return json.loads((file.parent / "run/result.json").read_text())


def test_accuracy_is_that_of_the_answers(evaluated: tuple[Path, Command]) -> None:
    found = result(evaluated[0])
    assert [found[name]["accuracy"] for name in ("System 1", "System 2", "voted")] == [0.25, 1.0, 1.0]
    assert found["System 1"]["accuracy_se"] == pytest.approx((0.25 * 0.75 / 39) ** 0.5)


def test_tokens_are_those_of_all_samples(evaluated: tuple[Path, Command]) -> None:
    found = result(evaluated[0])
    assert found["System 1"]["tokens_per_answer"] == 2  # a number and the end
    assert (found["System 2"]["tokens_per_answer"], found["voted"]["tokens_per_answer"]) == (9, 27)
    assert found["voted"]["tokens_per_sample"] == 9


def test_each_system_is_asked_as_its_rollout_says(evaluated: tuple[Path, Command], server: ChatServer) -> None:
    drawn = [(each["temperature"], "Think step" in each["messages"][0]["content"]) for each in server.requests[:200]]
    assert {pair: drawn.count(pair) for pair in set(drawn)} == {(0, False): 40, (0, True): 40, (1, True): 120}


def test_the_table_has_a_row_for_each_system(evaluated: tuple[Path, Command]) -> None:
    lines = [line.split() for line in evaluated[1].stdout.splitlines()]
    assert ["System", "1", "0.250", "±", "0.069"] in [line[:5] for line in lines]
    assert ["voted", "1.000", "±", "0.000", "1.000", "±", "0.000", "1.000", "±", "0.000", "27.000", "9.000", "0.000"] in lines


def test_systems_may_be_added_and_those_that_are_done_are_not_asked_again(
    evaluated: tuple[Path, Command], server: ChatServer
) -> None:
    before, asked = result(evaluated[0]), len(server.requests)
    command = run(evaluated[0], f"systems.direct={{server: {{url: '{server.url}'}}}}")
    assert command.returncode == 0, command.stderr
    after = result(evaluated[0])
    assert len(server.requests) - asked == len(ROWS)
    assert after.pop("direct") == before["System 1"] and after == before


def test_a_model_in_this_process_is_a_system_too(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_renderer().tokenizer.save_pretrained(tmp_path / "model")
    systems = {"tiny": {"model": {"model": str(tmp_path / "model")}}}
    rows = {"rows": {"path": "task:addition", "split": "test", "rows": 5}, "max_prompt_tokens": 32}
    drawn = {"engine": "hf", "max_new_tokens": 4}
    local = {"roles": "local", "threads": 1}
    file = write(tmp_path, "", systems=systems, data=rows, rollout=drawn, cluster=local, seeds=[1, 2])
    assert (command := run(file)).returncode == 0, command.stderr
    found = result(file)["tiny"]
    assert 0 < found["tokens_per_answer"] <= 4 and found["accuracy_sd"] >= 0
    assert all((tmp_path / f"run/tiny-seed{seed}/kept.jsonl").is_file() for seed in (1, 2))


def summary(**changes: Any) -> dict[str, Any]:
    found = {"rows": 10, "rows_failed": 0, "tokens": 50, "accuracy": 0.5, "accept_frac": 0.8, "rows_kept": 8}
    return found | {"accuracy_kept": 0.625, "answer_tokens_mean": 5.0} | changes


def test_a_row_that_failed_is_not_right() -> None:
    found = figures(summary(rows_failed=5))
    assert found["accuracy"].mean == 0.25 and found["failed_frac"].mean == 0.5


def test_without_an_answered_row_nothing_is_right() -> None:
    assert figures({"rows": 3, "rows_failed": 3})["accuracy"].mean == 0


def test_several_seeds_have_a_mean_and_a_spread() -> None:
    found = over_seeds([summary(), summary(accuracy=0.7, accuracy_kept=None)])
    assert found["accuracy"].mean == pytest.approx(0.6) and found["accuracy"].spread == pytest.approx(0.02**0.5)
    assert "accuracy_kept" not in found  # one seed kept nothing


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"grade": None}, "accuracy of systems is asked for, and no grader is given: set grade.gold"),
        ({"grade": {"gold": "label"}}, "no column 'label', which accuracy (program.gold, grade.gold) needs"),
        ({"systems": {"a/b": {"server": {"url": "http://127.0.0.1:9"}}}}, "systems.a/b: a system's name is part of a path"),
        ({"systems": {"a": {}}}, "systems.a: set exactly one of model"),
        (
            {"systems": {"a": {"server": {"url": "http://127.0.0.1:9"}, "program": {"gold": "x"}}}},
            "systems.a.program.gold: all systems are graded alike; set grade.gold",
        ),
        ({"seeds": [1, 2], "systems": {"a": {"server": {"url": "http://127.0.0.1:9"}}}}, "the same answers with every seed"),
        ({"seeds": [1, 1]}, "a repeated seed"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_it_starts(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    file = write(tmp_path, "http://127.0.0.1:9", **changes)
    for verb in ("check", "evaluate"):
        command = start(verb, file).wait()
        assert command.returncode == 2 and sentence in command.stderr, command.stderr
        assert len(command.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_check_says_what_each_system_is(tmp_path: Path) -> None:
    command = start("check", write(tmp_path, "http://127.0.0.1:9")).wait()
    assert command.returncode == 0, command.stderr
    assert "voted: rows: 40 of" in command.stdout and "3 samples of chain_of_thought, filter majority" in command.stdout
    assert command.stdout.rstrip().endswith("ready for minidist evaluate")
