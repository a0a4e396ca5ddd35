"""The section student: a checkpoint or an architecture."""

from pathlib import Path

import pytest

from tests.support.config import assert_refused

REFUSED = [
    ("sft", ["student.model=x"], ["exactly one of student.model", "student.architecture"]),
    ("sft", ["student.architecture=null"], ["exactly one of student.model", "student.architecture"]),
    ("sft", ["student.tokenizer=null"], ["student.architecture needs student.tokenizer", "characters:TASK"]),
    ("sft", ["student.architecture={hidden_size: 8}"], ["student.architecture needs model_type", "llama"]),
]


@pytest.mark.parametrize(("stage", "overrides", "parts"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_an_incomplete_student_is_refused(tmp_path: Path, stage: str, overrides: list[str], parts: list[str]) -> None:
    assert_refused(tmp_path, stage, overrides, parts)
