"""The table of several models."""

import pytest

from minidist.evaluation.figures import Figure
from minidist.evaluation.table import markdown, show


def test_table_shows_spread_questions_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = {"rouge_l": Figure(20.0, error=1.0), "exposure_bias": Figure(0.0)}
    teacher |= {"sst2_accuracy": Figure(0.9), "sst2_ece": Figure(0.05)}
    student = {"rouge_l": Figure(10.0, error=1.0, spread=0.25), "distinct_4": Figure(0.75)}
    show({"teacher": teacher, "student": student})
    lines = capsys.readouterr().out.splitlines()
    assert "ROUGE-L" in lines[1] and "sst2 ECE" in lines[1]
    assert lines[3].split() == ["teacher", "20.000", "±", "1.000", "0.0", "–", "0.900", "0.050"]
    assert lines[4].split() == ["student", "10.000", "±", "0.250", "–", "0.750", "–", "–"]
    assert "± standard deviation over seeds" in " ".join(" ".join(lines).split())


def test_markdown_has_the_caption_below() -> None:
    lines = markdown({"a": {"accuracy": Figure(0.5, error=0.25)}, "b": {}}).splitlines()
    assert lines[:4] == ["|  | accuracy |", "| --- | --- |", "| a | 0.500 ± 0.250 |", "| b | – |"]
    assert lines[5].startswith("divergences in nats a token") and lines[5].endswith("± standard error")


def test_a_name_is_shown_as_it_is_but_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    show({"[/red]\x1b[2J": {"rouge_l": Figure(1.0)}})
    shown = capsys.readouterr().out
    assert "[/red]\ufffd[2J" in shown and "\x1b" not in shown
