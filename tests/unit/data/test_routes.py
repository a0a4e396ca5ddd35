"""Rows that name their teacher."""

import json
from pathlib import Path
from typing import Any

import pytest

from minidist.config.data import SourceConfig
from minidist.data.routes import TeacherColumn
from minidist.data.sources import check_source, read_examples, read_prompts
from minidist.errors import DataError
from minidist.types import Prompt
from tests.support.tiny import tiny_renderer

COLUMN = TeacherColumn("domain", ("maths", "code"))
ROWS = [{"prompt": "1=", "answer": "1", "domain": "maths"}, {"prompt": "2=", "answer": "2", "domain": "code"}]


def source(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> SourceConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path), **fields)


def prompts(folder: Path, rows: list[dict[str, Any]], column: TeacherColumn = COLUMN, **fields: Any) -> list[Prompt]:
    return read_prompts(source(folder, rows, **fields), tiny_renderer(), max_prompt_tokens=9, context=column)[0]


def test_the_column_names_the_teacher_of_a_prompt(tmp_path: Path) -> None:
    assert [prompt.teacher for prompt in prompts(tmp_path, ROWS)] == ["maths", "code"]


def test_answers_and_plain_text_have_the_teacher_of_their_row(tmp_path: Path) -> None:
    answers, _ = read_examples(
        source(tmp_path, ROWS, answer="{{ answer }}"), tiny_renderer(), max_prompt_tokens=9, max_tokens=9, context=COLUMN
    )
    assert [example.as_rollout().prompt.teacher for example in answers] == ["maths", "code"]
    text = [{"text": "123456789", "domain": "code"}, {"text": "12", "domain": "maths"}]
    pieces, _ = read_examples(
        source(tmp_path, text, text="{{ text }}"), tiny_renderer(), max_prompt_tokens=9, max_tokens=6, context=COLUMN
    )
    assert [piece.teacher for piece in pieces] == ["code", "code", "maths"]


@pytest.mark.parametrize("value", [None, "", " "])
def test_a_row_without_a_value_has_the_default(tmp_path: Path, value: Any) -> None:
    rows = [ROWS[0], ROWS[1] | {"domain": value}]
    assert prompts(tmp_path, rows, TeacherColumn("domain", ("maths", "code"), "code"))[1].teacher == "code"
    with pytest.raises(DataError, match=r"row 1: domain is empty.*routing.default"):
        prompts(tmp_path, rows)


@pytest.mark.parametrize("bad_rows", ["refuse", "skip"])
def test_an_unknown_teacher_is_refused_whatever_happens_to_bad_rows(tmp_path: Path, bad_rows: str) -> None:
    rows = [*ROWS, ROWS[0] | {"domain": "mahts"}]
    with pytest.raises(
        DataError, match=r"row 2: domain is 'mahts', and the teachers are maths, code; correct it, or add mahts"
    ):
        prompts(tmp_path, rows, bad_rows=bad_rows)


def test_a_missing_column_is_refused_before_rows_are_read(tmp_path: Path) -> None:
    rows = source(tmp_path, [{"prompt": "1="}])
    with pytest.raises(DataError, match=r"has no column 'domain', which routing.column names; its columns are prompt"):
        check_source(rows, [COLUMN])
