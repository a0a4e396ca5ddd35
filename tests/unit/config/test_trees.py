"""YAML that others wrote: bounded in size and depth, with what JSON can hold, or refused in one sentence."""

import os
import time
from pathlib import Path

import pytest

from minidist.config import load
from minidist.config.trees import parse_tree, read_tree
from minidist.errors import ConfigError
from tests.support.config import assert_refused, write_stage
from tests.support.hostile import ALIAS_BOMB, MERGE_BOMB

REFUSED = {
    "!!int abc": "'abc' is no int",
    "!!bool maybe": "'maybe' is no bool",
    "9" * 5000: "is no int",
    "0x" + "f" * 900: "is out of the range of numbers",
    "!!binary x": "could not determine a constructor",
    "!!python/object/apply:os.system [ls]": "could not determine a constructor",
    "&a [*a]": "an alias stands for a section that holds it",
    "[" * 60 + "]" * 60: "larger than any configuration needs to be, 40 levels deep",
    "[" * 900 + "]" * 900: "nested deeper than 40 levels",
    "[" * 90_000: "nested deeper than 40 levels",
    ALIAS_BOMB: "larger than any configuration needs to be, of 100,000 values",
    MERGE_BOMB: "larger than any configuration needs to be, of 100,000 values",
    "{[a]: b}": "unhashable key",
    "\x00": "not valid YAML",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_no_configuration_holds_is_refused_at_once(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        parse_tree(text, "a.yaml")
    assert str(caught.value).startswith("a.yaml is not valid YAML: ") and REFUSED[text] in str(caught.value)
    assert len(str(caught.value)) < 1000 and time.monotonic() - started < 5


def test_dates_are_text_and_aliases_work() -> None:
    assert parse_tree("a: 2024-99-99\nb: &x {c: 2024-01-01}\nd: *x\ne: {<<: *x, f: 1.5}", "a.yaml") == {
        "a": "2024-99-99",
        "b": {"c": "2024-01-01"},
        "d": {"c": "2024-01-01"},
        "e": {"c": "2024-01-01", "f": 1.5},
    }


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_text("a: " + "x" * (1 << 20))
    for name, part in (("latin", "is not UTF-8"), ("pipe", "is not a file"), ("large", "more than 1,048,576 bytes")):
        with pytest.raises(ConfigError, match=part):
            read_tree(tmp_path / f"{name}.yaml")


SENSELESS = [
    ("sft", ["run.steps=1.0e+30"], ["out of the range of numbers"]),
    ("sft", ["run.seed='99999999999999999999'"], ["run.seed is out of the range of whole numbers, -2^63 to 2^63"]),
    ("sft", ['run.directory="a\\0b"'], ["run.directory holds the character NUL"]),
    ("sft", ['student.tokenizer="half \\ud800"'], ["student.tokenizer holds half of a character"]),
    ("sft", ["data.train.path=s3://key:secret@bucket/x"], ["data.train.path is an address with a user or a password"]),
    ("sft", ["student.architecture={model_type: llama, rope_theta: .inf}"], ["student.architecture is no finite number"]),
    ("distill", ["objective.type={a: b}"], ["objective"]),
    ("distill", ["objective.type=[a]"], ["objective"]),
    ("distill", ["run.directory=${MY_SECRET}/x"], ["${MY_SECRET}, a secret that config.json would record"]),
]


@pytest.mark.parametrize(("stage", "overrides", "parts"), SENSELESS, ids=[" ".join(case[1]) for case in SENSELESS])
def test_values_that_no_setting_can_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, overrides: list[str], parts: list[str]
) -> None:
    monkeypatch.setenv("MY_SECRET", "secret-value")
    sentence = assert_refused(tmp_path, stage, overrides, parts)
    assert "secret@" not in sentence and "secret-value" not in sentence


def test_the_message_about_a_long_value_is_short(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write_stage(tmp_path, "sft"), ["run.steps=" + "x" * 100_000])
    assert len(str(caught.value)) < 1000 and "valid integer" in str(caught.value)
