"""Rows of labelled tasks that would give a wrong figure: one label, rows on both sides, texts of another language."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from minidist.config.task import ClassesTask, ScoreTask
from minidist.data.labelled import LabelledText, RowEncoder
from minidist.errors import DataError
from minidist.preflight.labels import check_known, held_out_lines, label_lines
from tests.support.classifiers import tokenizer

TASK = ClassesTask(names=["no", "maybe", "yes"])


def texts(*labels: float) -> list[LabelledText]:
    return [LabelledText(number, f"text {number}", label=label) for number, label in enumerate(labels)]


def test_rows_of_one_label_are_refused() -> None:
    with pytest.raises(DataError, match=r"all 3 rows of data.train have the label maybe: nothing can be learned"):
        label_lines(TASK, texts(1, 1, 1))
    with pytest.raises(DataError, match=r"all 2 rows of data.train have the label 2.5: nothing"):
        label_lines(ScoreTask(), texts(2.5, 2.5))


def test_a_class_without_rows_is_a_line() -> None:
    assert label_lines(TASK, texts(0, 1, 2)) == [] == label_lines(ScoreTask(), texts(0, 1))
    assert label_lines(TASK, texts(0, 2)) == ["data.train has no row of the class maybe, which will hardly be predicted"]


def test_rows_that_are_trained_on_are_a_line_and_all_of_them_are_refused() -> None:
    train, other = texts(0, 1, 0), [LabelledText(0, "other"), LabelledText(1, "text 1", "pair")]
    assert held_out_lines(train, other, "test") == []
    assert held_out_lines(train, [*other, train[2]], "test") == [
        "1 of 3 rows of data.test are rows of data.train, too: its figures are too good"
    ]
    with pytest.raises(DataError, match=r"all 2 rows of data.test are rows of data.train, too.*set data.test to other rows"):
        held_out_lines(train, train[1:], "test")


def test_a_tokenizer_that_does_not_know_the_words_is_refused(tmp_path: Path) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path))

    def check(*words: str) -> None:
        rows = RowEncoder(TASK, tokens, 9).rows([LabelledText(0, word) for word in words])
        check_known(rows, tokens, "student.model")

    check("good film", "splendid film")
    with pytest.raises(DataError, match=r"of student.model does not know 67% of the tokens of the rows; set student.tokenizer"):
        check("good", "splendid", "horrid")
