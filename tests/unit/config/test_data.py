"""Sources of text: one use a source."""

from pathlib import Path

import pytest

from tests.support.config import assert_refused

REFUSED = [
    ("sft", ["data.train.answer=a", "data.train.text=b"], ["answer", "text", "not both"]),
    ("evaluate", ["data.test.references=a", "data.test.answer=b"], ["references", "in place of answer", "only one"]),
    (
        "evaluate",
        ["data.questions={s: {path: a.jsonl, choices: [a, b]}}"],
        ["questions need answer", "its text or its number from 0"],
    ),
    (
        "evaluate",
        ["data.questions={s: {path: a.jsonl, answer: l, choices: [a]}}"],
        ["choices of questions are ['a']", "two or more"],
    ),
]


@pytest.mark.parametrize(("stage", "overrides", "parts"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_a_source_with_two_uses_or_none_is_refused(tmp_path: Path, stage: str, overrides: list[str], parts: list[str]) -> None:
    assert_refused(tmp_path, stage, overrides, parts)
