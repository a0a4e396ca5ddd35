"""Slow: 2,000 malformed inputs of every kind, others in each run, and commands in processes of their own."""

from pathlib import Path

import pytest
import yaml

from tests.support.commands import start
from tests.support.config import TREES
from tests.support.hostile import ALIAS_BOMB, YAML
from tests.support.malformed_runner import hold

INPUTS = {
    "configurations": 600,
    "data": 400,
    "templates": 300,
    "runs": 250,
    "models": 120,
    "answers": 200,
    "caches": 50,
    "plans": 50,
    "commands": 30,
}


def test_two_thousand_inputs_are_tried() -> None:
    assert sum(INPUTS.values()) == 2000


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", INPUTS)
def test_a_malformed_input_is_accepted_or_refused_in_a_sentence(kind: str) -> None:
    hold(kind, INPUTS[kind], derandomize=False)


@pytest.mark.parametrize("fragment", [*YAML[::6], ALIAS_BOMB], ids=range(len(YAML[::6]) + 1))
def test_a_command_ends_in_time_with_one_line(tmp_path: Path, fragment: str) -> None:
    text = yaml.safe_dump(TREES["sft"] | {"run": "PLACE"}).replace("PLACE", fragment)
    (tmp_path / "config.yaml").write_text(fragment if fragment == ALIAS_BOMB else text)
    ended = start("check", tmp_path / "config.yaml").wait(60)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("minidist: ") and len(ended.stderr.splitlines()) == 1 and len(ended.stderr) < 3000
