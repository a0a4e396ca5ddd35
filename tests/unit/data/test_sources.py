"""Rows from files, directories and tasks; rows that cannot be used are refused or counted."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from minidist.config.data import SourceConfig
from minidist.data.sources import Example, gold_rollout, read_examples, read_prompts, read_rows
from minidist.errors import DataError
from minidist.types import Finish, Prompt, Writer
from tests.support.tiny import answer_of, tiny_renderer

ROWS = [{"q": "31=", "a": "13"}, {"q": "20=", "a": "02"}, {"q": "9=", "a": "9"}]
COLUMNS = {"prompt": "{{ q }}", "answer": "{{ a }}"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gzipped(path: Path) -> Path:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    return path


def parquet(path: Path) -> Path:
    Dataset.from_list(ROWS).to_parquet(path)
    return path


def prompts(path: Path | str, **fields: Any) -> tuple[list[Prompt], int]:
    limit = fields.pop("max_prompt_tokens", 16)
    return read_prompts(SourceConfig(path=str(path), **fields), tiny_renderer(), max_prompt_tokens=limit)


def examples(path: Path | str, **fields: Any) -> tuple[list[Example], int]:
    limits = {"max_prompt_tokens": fields.pop("max_prompt_tokens", 16), "max_tokens": fields.pop("max_tokens", 32)}
    return read_examples(SourceConfig(path=str(path), **fields), tiny_renderer(), **limits)


MAKERS: list[tuple[str, Callable[[Path], Path]]] = [("r.jsonl", jsonl), ("r.jsonl.gz", gzipped), ("r.parquet", parquet)]


def test_two_sources_divide_a_file(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl", [*ROWS[:1], {"q": "", "a": "1"}, *ROWS[1:]])
    first, _ = prompts(file, rows=1, bad_rows="skip", **COLUMNS)
    rest, bad = prompts(file, skip=1, bad_rows="skip", **COLUMNS)
    second, _ = prompts(file, skip=1, rows=1, bad_rows="skip", **COLUMNS)
    assert [[each.text for each in found] for found in (first, rest, second)] == [["31="], ["20=", "9="], ["20="]]
    assert bad == 1
    whole, _ = prompts("task:sort", rows=5)
    part, _ = prompts("task:sort", rows=2, skip=3)
    assert [each.text for each in part] == [each.text for each in whole[3:]]
    with pytest.raises(DataError, match=r"skip of .*r\.jsonl is 3, and it has 3 usable rows; lower skip"):
        prompts(file, skip=3, bad_rows="skip", **COLUMNS)


@pytest.mark.parametrize(("name", "make"), MAKERS, ids=[name for name, _ in MAKERS])
def test_files_of_every_kind_are_read(tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
    found, skipped = prompts(make(tmp_path / name), **COLUMNS)
    assert [(prompt.row, prompt.text, prompt.answer) for prompt in found] == [
        (0, "31=", "13"),
        (1, "20=", "02"),
        (2, "9=", "9"),
    ]
    assert found[0].tokens.tolist() == tiny_renderer().prompt("31=").tolist()
    assert skipped == 0


def test_a_directory_is_a_source_with_splits(tmp_path: Path) -> None:
    jsonl(tmp_path / "data" / "train.jsonl")
    jsonl(tmp_path / "data" / "test.jsonl", ROWS[:1])
    assert len(prompts(tmp_path / "data", **COLUMNS)[0]) == 3
    assert len(prompts(tmp_path / "data", split="test", **COLUMNS)[0]) == 1
    with pytest.raises(DataError, match=r"has the splits train, test, not 'dev'; set split"):
        prompts(tmp_path / "data", split="dev", **COLUMNS)


def test_task_is_a_source_with_answers() -> None:
    found, _ = prompts("task:sort", rows=5, split="test")
    assert [prompt.answer for prompt in found] == ["".join(sorted(prompt.text[:-1])) for prompt in found]
    assert len(list(read_rows(SourceConfig(path="task:sort")))) == 1000


def test_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl")
    with pytest.raises(DataError, match=r"r.jsonl has no column 'question', which prompt uses; its columns are q, a"):
        prompts(file, prompt="{{ question }}")
    with pytest.raises(DataError, match="no column 'gold', which answer uses"):
        examples(file, prompt="{{ q }}", answer="{{ gold }}")
    with pytest.raises(DataError, match="no column 'body', which text uses"):
        examples(file, text="{{ body }}")


def test_missing_column_of_a_task_is_named_too() -> None:
    with pytest.raises(DataError, match="no column 'question', which prompt uses; its columns are prompt, answer"):
        prompts("task:sort", prompt="{{ question }}", rows=3)


@pytest.mark.parametrize("name", ["none.jsonl", "none.jsonl.gz", "./none", "a/b/c"])
def test_a_missing_file_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no data file or directory at"):
        prompts(name)


def test_unknown_ending_and_broken_file(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<a/>")
    with pytest.raises(DataError, match=r"unknown ending; expected .jsonl"):
        prompts(tmp_path / "a.xml")
    (tmp_path / "b.jsonl").write_text("{not json\n")
    with pytest.raises(DataError, match=r"b.jsonl, row 0: the row cannot be read"):
        prompts(tmp_path / "b.jsonl")


BAD = [{"q": "31=", "a": "13"}, {"q": " ", "a": "1"}, {"q": "1234567890=", "a": "1"}, {"q": "4=", "a": ""}]


def test_bad_rows_are_refused_the_first_one_named(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl", BAD)
    with pytest.raises(DataError, match=r"2 of 4 rows .* the first is row 1: the prompt is empty.*bad_rows: skip"):
        prompts(file, max_prompt_tokens=8, **COLUMNS)
    with pytest.raises(DataError, match=r"3 of 4 rows .* the first is row 1: the prompt is empty"):
        examples(file, max_prompt_tokens=8, **COLUMNS)


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl", BAD)
    found, skipped = prompts(file, max_prompt_tokens=8, bad_rows="skip", **COLUMNS)
    assert ([prompt.row for prompt in found], skipped) == ([0, 3], 2)
    learned, skipped = examples(file, max_prompt_tokens=8, bad_rows="skip", **COLUMNS)
    assert (len(learned), skipped) == (1, 3)


def test_reasons_name_the_key_to_change(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl", BAD[:1] + BAD[2:3])
    with pytest.raises(DataError, match=r"row 1: the prompt has 11 tokens, more than data.max_prompt_tokens = 8"):
        prompts(file, max_prompt_tokens=8, **COLUMNS)
    with pytest.raises(DataError, match=r"row 1: it has 13 tokens, more than data.max_tokens = 12"):
        examples(file, max_tokens=12, **COLUMNS)


def test_no_row_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 1 rows .* No usable row is left"):
        prompts(jsonl(tmp_path / "r.jsonl", BAD[1:2]), bad_rows="skip", **COLUMNS)


def test_source_without_rows_is_refused(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).select([]).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(DataError):
        prompts(tmp_path / "none.parquet", **COLUMNS)
    with pytest.raises(DataError):
        prompts(jsonl(tmp_path / "none.jsonl", []), **COLUMNS)


def test_null_is_an_empty_text(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl", [{"q": "1=", "a": "1"}, {"q": None, "a": "2"}])
    assert prompts(file, bad_rows="skip", **COLUMNS)[1] == 1


def test_rows_counts_usable_rows(tmp_path: Path) -> None:
    found, _ = prompts(jsonl(tmp_path / "r.jsonl", BAD), rows=2, bad_rows="skip", max_prompt_tokens=8, **COLUMNS)
    assert [prompt.row for prompt in found] == [0, 3]
    found, skipped = prompts(jsonl(tmp_path / "s.jsonl", BAD), rows=1, **COLUMNS)
    assert ([prompt.row for prompt in found], skipped) == ([0], 0), "rows beyond the wanted ones are not looked at"


def test_example_is_prompt_then_answer_then_eos(tmp_path: Path) -> None:
    renderer = tiny_renderer()
    learned, _ = examples(jsonl(tmp_path / "r.jsonl"), **COLUMNS)
    first = learned[0]
    assert first.start == 3
    assert first.tokens.tolist() == [*renderer.prompt("31=").tolist(), *answer_of(renderer, "13").tolist()]
    assert first.tokens[-1] == renderer.eos


def test_plain_text_is_cut_into_pieces(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl", [{"t": "0123456789"}, {"t": "55"}])
    pieces, skipped = examples(file, text="{{ t }}", max_tokens=4)
    whole = tiny_renderer().text("0123456789").tolist()
    assert [piece.tokens.tolist() for piece in pieces] == [
        whole[:4],
        whole[3:7],
        whole[6:10],
        whole[9:],
        tiny_renderer().text("55").tolist(),
    ]
    assert {piece.start for piece in pieces} == {1}
    assert skipped == 0


def test_text_file_with_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("12\n\n34\n")
    pieces, skipped = examples(tmp_path / "r.txt", text="{{ text }}")
    assert ([len(piece.tokens) for piece in pieces], skipped) == ([3, 3], 0)
    assert len(examples(tmp_path / "r.txt", text="{{ text }}", rows=2)[0]) == 2, "rows counts usable rows"


def test_empty_plain_text_is_a_bad_row(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "r.jsonl", [{"t": "12"}, {"t": " "}])
    with pytest.raises(DataError, match=r"1 of 2 rows .* row 1: the text is empty"):
        examples(file, text="{{ t }}")
    assert examples(file, text="{{ t }}", bad_rows="skip")[1] == 1


def test_references_are_a_column_of_lists(tmp_path: Path) -> None:
    rows = [{"q": "1=", "all": ["1", "one"]}, {"q": "2=", "all": ["2"]}]
    found, _ = prompts(jsonl(tmp_path / "r.jsonl", rows), prompt="{{ q }}", references="all")
    assert [(prompt.answer, prompt.references) for prompt in found] == [("1", ("1", "one")), ("2", ("2",))]
    with pytest.raises(DataError, match=r"has no column 'outputs', which references names; its columns are q, all"):
        prompts(tmp_path / "r.jsonl", prompt="{{ q }}", references="outputs")


@pytest.mark.parametrize("cell", [[], None, "3"])
def test_a_row_without_references_cannot_be_used(tmp_path: Path, cell: object) -> None:
    rows = [{"q": "1=", "all": "1" if isinstance(cell, str) else ["1"]}, {"q": "2=", "all": cell}]
    file = jsonl(tmp_path / "r.jsonl", rows)
    with pytest.raises(DataError, match=r"row [01]: its all is .*, not a list of texts"):
        prompts(file, prompt="{{ q }}", references="all")


@pytest.mark.parametrize(("limit", "tokens", "finish"), [(None, 3, Finish.STOP), (3, 3, Finish.STOP), (2, 2, Finish.LENGTH)])
def test_a_gold_rollout_is_cut_at_the_limit(limit: int | None, tokens: int, finish: Finish) -> None:
    gold = answer_of(tiny_renderer(), "13")
    rollout = gold_rollout(Prompt(0, tiny_renderer().prompt("31="), "31=", "13", gold), limit)
    assert rollout.tokens.tolist() == gold[:tokens].tolist()
    assert (rollout.finish, rollout.writer, rollout.text, rollout.logprobs) == (finish, Writer.DATASET, "13", None)
    assert rollout.versions.tolist() == [-1] * tokens


def test_an_example_is_a_rollout_of_its_labels() -> None:
    rollout = Example(np.arange(5, dtype=np.int32), 2).as_rollout()
    assert (rollout.prompt.tokens.tolist(), rollout.tokens.tolist()) == ([0, 1], [2, 3, 4])
    assert (rollout.finish, rollout.writer, rollout.logprobs) == (Finish.STOP, Writer.DATASET, None)


def cut(rows: list[dict[str, str]], path: Path, **settings: Any) -> list[tuple[str, str]]:
    """Prompts and labels of rows that are cut."""
    renderer = tiny_renderer(**settings)
    source = SourceConfig(path=str(jsonl(path / "r.jsonl", rows)), **COLUMNS)
    found, _ = read_examples(source, renderer, max_prompt_tokens=4, max_tokens=6)
    return [(renderer.decode(each.tokens[: each.start]), renderer.tokenizer.decode(each.answer)) for each in found]


def test_long_rows_are_cut_where_the_configuration_says(tmp_path: Path) -> None:
    rows = [{"q": "1234567=", "a": "1"}, {"q": "12=", "a": "12"}, {"q": "12=", "a": "1234567"}]
    with pytest.raises(DataError, match=r"2 of 3 rows .* the prompt has 8 tokens"):
        cut(rows, tmp_path)
    assert cut(rows[:2], tmp_path, truncate="left") == [("567=", "1<eos>"), ("12=", "12<eos>")]
    assert cut(rows, tmp_path, truncate="right") == [("1234", "1<eos>"), ("12=", "12<eos>"), ("12=", "123")]
    with pytest.raises(DataError, match="row 2: the prompt is too long even without all of its last text"):
        cut(rows, tmp_path, truncate="left")
    assert cut([{"q": "123=", "a": "1234"}], tmp_path, truncate="left") == [("=", "1234<eos>")]
