"""Shares of the main stream, and further streams."""

from pathlib import Path

import pytest

from tests.support.config import assert_refused

REFUSED = [
    ("distill", ["prefix.teacher=0.5"], ["prefix.student + prefix.teacher + prefix.dataset is 1.5", "add up to 1"]),
    ("distill", ["prefix={student: 0.9}"], ["prefix.student + prefix.teacher + prefix.dataset is 0.9", "add up to 1"]),
    ("distill", ["prefix={student: 2, teacher: -1}"], ["prefix.student is 2", "less than or equal to 1"]),
    ("distill", ["prefix.per=token"], ["prefix.per is 'token'", "'row' or 'step'"]),
    ("distill", ["streams.sft.data.path=a.jsonl"], ["data of a stream needs answer", "or text"]),
    ("distill", ["streams.sft={data: {path: task:sort}, weight: -1}"], ["weight is -1", "greater than or equal to 0"]),
]


@pytest.mark.parametrize(("stage", "overrides", "parts"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_wrong_shares_and_streams_are_refused(tmp_path: Path, stage: str, overrides: list[str], parts: list[str]) -> None:
    assert_refused(tmp_path, stage, overrides, parts)
