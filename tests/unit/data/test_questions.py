"""Questions with a fixed set of answers; rows that make no question are refused with a reason."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minidist.config.data import QuestionsConfig
from minidist.data.questions import Question, read_questions
from minidist.errors import DataError
from tests.support.tiny import tiny_renderer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(path: Path, **fields: Any) -> tuple[list[Question], int]:
    limits = {"max_prompt_tokens": fields.pop("max_prompt_tokens", 16), "max_tokens": fields.pop("max_tokens", 32)}
    source = {"path": str(path), "prompt": "{{ q }}", "answer": "{{ a }}"} | fields
    return read_questions(QuestionsConfig.model_validate(source), tiny_renderer(), **limits)


def test_questions_of_one_list_of_choices(tmp_path: Path) -> None:
    rows = [{"q": "3=", "a": "12"}, {"q": "20=", "a": "0"}, {"q": "9=", "a": "7"}]
    found, skipped = questions(jsonl(tmp_path / "r.jsonl", rows), choices=["7", "12"])
    assert skipped == 0
    assert [question.right for question in found] == [1, 0, 0], "by its text, by its number, by its text again"
    renderer = tiny_renderer()
    whole = [[each.tokens.tolist() for each in question.choices] for question in found]
    assert whole[1] == [renderer.prompt("20=7").tolist(), renderer.prompt("20=12").tolist()], "no end-of-sequence token"
    assert [each.start for each in found[1].choices] == [3, 3]


def test_questions_with_choices_of_their_own(tmp_path: Path) -> None:
    rows = [{"q": "3=", "a": 2, "c": ["7", "12", "1"]}, {"q": "4=", "a": 0, "c": ["7", "1"]}]
    found, _ = questions(jsonl(tmp_path / "r.jsonl", rows), choices="c")
    assert [(len(question.choices), question.right) for question in found] == [(3, 2), (2, 0)]
    with pytest.raises(DataError, match=r"has no column 'options', which choices names; its columns are q, a, c"):
        questions(tmp_path / "r.jsonl", choices="options")


@pytest.mark.parametrize(
    ("row", "fields", "reason"),
    [
        ({"q": " ", "a": "7"}, {}, "the prompt is empty"),
        ({"q": "1=", "a": "8"}, {}, "its answer '8' is neither one of its choices ['7', '12'] nor the number of a choice"),
        ({"q": "1=", "a": "2"}, {}, "its answer '2' is neither"),
        ({"q": "1=", "a": "7"}, {"choices": ["7", ""]}, "one of its choices ['7', ''] is empty"),
        ({"q": "1=", "a": "7", "c": ["7"]}, {"choices": "c"}, "its choices are ['7'], not a list of two texts or more"),
        ({"q": "11111=", "a": "7"}, {"max_prompt_tokens": 5}, "the prompt has 6 tokens, more than data.max_prompt_tokens = 5"),
        (
            {"q": "1111=", "a": "7"},
            {"max_tokens": 6},
            "it has 7 tokens with its longest choice, more than the 6 that",
        ),
    ],
)
def test_questions_that_cannot_be_used(tmp_path: Path, row: dict[str, Any], fields: dict[str, Any], reason: str) -> None:
    file = jsonl(tmp_path / "r.jsonl", [row])
    with pytest.raises(DataError, match=re.escape(f"row 0: {reason}")):
        questions(file, **({"choices": ["7", "12"]} | fields))
