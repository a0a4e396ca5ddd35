"""Rows of labelled tasks: labels, encodings, masks and the rows held out for feedback."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from pydantic import TypeAdapter
from transformers import AutoTokenizer, BertTokenizerFast

from minidist.config.data import SourceConfig
from minidist.config.glue import TASKS
from minidist.config.task import ChoicesTask, ClassesTask, MaskedTask, ScoreTask, TaskConfig, TokensTask
from minidist.data.labelled import LabelledText, Masker, RowEncoder, read_labelled, split_feedback
from minidist.errors import ConfigError, DataError
from tests.support.classifiers import tokenizer

HOME = os.environ.get("MINIDIST_DATA")
needs_data = pytest.mark.skipif(
    not (HOME and Path(HOME, "glue").is_dir()), reason="MINIDIST_DATA does not name the shared data"
)
TASK = ClassesTask(names=["negative", "positive"])
FOLDERS = dict.fromkeys(("boolq", "cb"), "superglue") | {"qqp": "noncommercial/glue", "wic": "noncommercial/superglue"}


def source(path: Path, rows: list[dict[str, Any]], **fields: Any) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SourceConfig(path=str(path), **fields)


def read(path: Path, task: Any, rows: list[dict[str, Any]], **fields: Any) -> list[LabelledText]:
    return read_labelled(task, source(path / "rows.jsonl", rows, **fields))[0]


def test_labels_are_numbers_or_names(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": "negative"}, {"text": "c", "label": "0"}]
    assert [text.label for text in read(tmp_path, TASK, rows)] == [1, 0, 0]
    scored = read(tmp_path, ScoreTask(label="score", pair="{{ other }}"), [{"text": "a", "other": "b", "score": "2.50"}])
    assert (scored[0].label, scored[0].text, scored[0].pair) == (2.5, "a", "b")


@pytest.mark.parametrize(
    ("row", "task", "parts"),
    [
        ({"text": "a", "label": 2}, TASK, ["row 0", "its label is '2'", "task.names (negative, positive)"]),
        ({"text": "a", "label": -1}, TASK, ["a label of -1 means that the row has none", "use rows with labels"]),
        ({"text": "a", "label": None}, TASK, ["its label is empty; expected one label"]),
        ({"text": "a", "label": "great"}, ScoreTask(), ["its label is 'great', not a number"]),
        ({"text": "a", "label": "nan"}, ScoreTask(), ["not a number"]),
        ({"text": " ", "label": 1}, TASK, ["task.text is empty"]),
        ({"text": "a"}, TASK, ["it has no column 'label', which task.label names"]),
        ({"body": "a", "label": 1}, TASK, ["no column 'text', which task.text uses"]),
        ({"text": "a", "label": [1]}, TASK, ["its label is a list; expected one label"]),
        ({"text": "a", "label": 0}, ClassesTask(names=["1", "2"]), ["its label is '0', neither a name nor"]),
        ({"text": "a", "label": -1}, ScoreTask(range=(0, 5)), ["its label is -1, outside task.range, 0 to 5"]),
        ({"text": "a", "label": 5.01}, ScoreTask(range=(0, 5)), ["its label is 5.01, outside task.range, 0 to 5"]),
    ],
    ids=str,
)
def test_rows_that_cannot_be_used_are_refused(tmp_path: Path, row: Any, task: Any, parts: list[str]) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, task, [row])
    assert all(part in str(error.value) for part in parts), error.value


def test_names_that_are_numbers_are_read_as_names(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": label} for label in (1, "2", "1")]
    assert [text.label for text in read(tmp_path, ClassesTask(names=["2", "1"]), rows)] == [1, 0, 1]


def test_numbers_of_a_glue_task_are_its_own_in_any_order_of_the_names(tmp_path: Path) -> None:
    task: Any = TypeAdapter[Any](TaskConfig).validate_python({"glue": "rte", "names": ["not_entailment", "entailment"]})
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (0, 1, "entailment")]
    assert [text.label for text in read(tmp_path, task, rows)] == [1, 0, 1]


def named_classes(path: Path, names: list[str], column: str = "text") -> SourceConfig:
    """Two rows of a saved data set, of its classes 0 and 1."""
    features = Features({column: Value("string"), "label": ClassLabel(names=names)})
    Dataset.from_dict({column: ["a", "b"], "label": [0, 1]}, features=features).save_to_disk(path / "saved")
    return SourceConfig(path=str(path / "saved"))


@pytest.mark.parametrize(
    ("names", "labels"), [(["negative", "positive"], [0, 1]), (["positive", "negative"], [1, 0]), (["0", "1"], [0, 1])]
)
def test_classes_that_a_data_set_names_are_matched_by_name(tmp_path: Path, names: list[str], labels: list[int]) -> None:
    assert [text.label for text in read_labelled(TASK, named_classes(tmp_path, names))[0]] == labels


def test_classes_that_a_data_set_names_otherwise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"class 0, which the data set names 'pos'; set task.names to the names of the data set"
    ):
        read_labelled(TASK, named_classes(tmp_path, ["pos", "neg"]))


def test_a_glue_task_reads_the_numbers_of_a_data_set_with_other_names(tmp_path: Path) -> None:
    task: Any = TypeAdapter[Any](TaskConfig).validate_python({"glue": "boolq", "text": "{{ text }}", "pair": None})
    assert [text.label for text in read_labelled(task, named_classes(tmp_path, ["False", "True"]))[0]] == [0, 1]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("text", "task.text uses no column, so that all rows are alike; write the name of a column as in {{ text }}"),
        ("{{ text }} {{ label }}", "task.text shows the column 'label', which is the label; leave it out of the text"),
    ],
)
def test_a_text_shows_the_row_and_not_its_label(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, ClassesTask(names=["no", "yes"], text=text), [{"text": "a", "label": 1}])
    assert part in str(error.value)


def test_bad_rows_may_be_skipped(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 7}, {"text": "b", "label": 1}]
    texts, skipped = read_labelled(TASK, source(tmp_path / "rows.jsonl", rows, bad_rows="skip"))
    assert ([text.index for text in texts], skipped) == ([1], 1)


def test_a_pair_is_joined_and_cut_as_the_tokenizer_does(tmp_path: Path) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path))
    texts = [LabelledText(3, "this film was great", "good plot", 1), LabelledText(4, "dull " * 20, "bad", 0)]
    task = ClassesTask(names=["negative", "positive"], pair="{{ pair }}")
    rows = RowEncoder(task, tokens, 12).rows(texts)
    whole = tokens("this film was great", "good plot")
    assert rows[0].tokens.tolist() == whole["input_ids"] and rows[0].segments is not None
    assert rows[0].segments.tolist() == [0] * 6 + [1] * 3 and (rows[0].label, rows[0].index) == (1, 3)
    assert len(rows[1].tokens) == 12
    assert rows[1].tokens.tolist().count(tokens.convert_tokens_to_ids("bad")) == 1  # the longer text is cut


def test_texts_that_are_cut_are_counted_and_cut_as_the_tokenizer_does(tmp_path: Path) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path))
    texts = [LabelledText(0, "a film", "good"), LabelledText(1, "a film that was a good plot", "it is good")]
    encoder = RowEncoder(ClassesTask(names=["no", "yes"]), tokens, 8)
    rows = encoder.rows(texts)
    assert encoder.counts["cut"] == 1
    for text, row in zip(texts, rows, strict=True):
        whole = tokens(text.text, text.pair, truncation=True, max_length=8)
        assert row.tokens.tolist() == whole["input_ids"] and row.segments is not None
        assert row.segments.tolist() == whole["token_type_ids"]


@pytest.mark.parametrize(("pair", "longest"), [(None, 2), ("good", 4)])
def test_rows_without_room_for_text_are_refused(tmp_path: Path, pair: str | None, longest: int) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path))
    texts = [LabelledText(0, "film", pair)]
    room = f"data.max_tokens {longest} leaves no room for text beside the {longest - (pair is not None)} special"
    with pytest.raises(ConfigError, match=room):
        RowEncoder(TASK, tokens, longest).rows(texts)
    assert len(RowEncoder(TASK, tokens, longest + 1).rows(texts)) == 1


def test_a_text_without_tokens_is_refused(tmp_path: Path) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path))
    with pytest.raises(DataError, match="row 7: the tokenizer finds no token in its text"):
        RowEncoder(TASK, tokens, 9).rows([LabelledText(7, "\u2003")])


@pytest.mark.parametrize(
    ("choices", "longest", "part"),
    [
        ([" good", " good"], 9, "choices 0 and 1 of task.choices are the same to the tokenizer"),
        ([" splendid", " horrid"], 9, "choices 0 and 1 of task.choices are the same to the tokenizer"),
        ([" good", ""], 9, "choice 1 of task.choices has no token"),
        ([" good", " not good"], 2, "row 3 has no room for its prompt beside the answer choices; raise data.max_tokens"),
    ],
)
def test_choices_that_cannot_be_told_apart_are_refused(tmp_path: Path, choices: list[str], longest: int, part: str) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path, encoder=False))
    task = ChoicesTask(prompt="{{ text }}", choices=choices, names=["yes", "no"])
    with pytest.raises(DataError) as error:
        RowEncoder(task, tokens, longest).rows([LabelledText(3, "a film")])
    assert part in str(error.value)


@pytest.mark.parametrize("two_sided", [False, True])
def test_choices_follow_their_prompt(tmp_path: Path, two_sided: bool) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path, encoder=False))
    task = ChoicesTask(prompt="{{ text }} it was", choices=[" bad", " not bad"], names=["n", "p"])
    [row] = RowEncoder(task, tokens, 8, two_sided).rows([LabelledText(0, "this film was great it was", label=1)])
    words = tokens.convert_ids_to_tokens
    end = ["</s>"] if two_sided else []
    assert words(row.tokens.tolist()) == ["this", "film", "was", "great", "it", "was", *end]
    assert [words(ids.tolist()) for ids in row.choices] == [["bad", *end], ["not", "bad", *end]]
    [cut] = RowEncoder(task, tokens, 4, two_sided).rows([LabelledText(0, "this film was great it was", label=1)])
    assert words(cut.tokens.tolist())[-1] == (end or ["was"])[0] and len(cut.tokens) == (4 if two_sided else 2)


def test_targets_are_the_tokens_of_the_answer(tmp_path: Path) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path, encoder=False))
    [row] = RowEncoder(TokensTask(), tokens, 16).rows([LabelledText(0, "is it good", answer=" yes")])
    assert tokens.convert_ids_to_tokens(row.tokens.tolist()) == ["is", "it", "good", "yes", "</s>"]
    assert row.targets is not None and row.targets.tolist() == [-1, -1, *row.tokens[3:].tolist(), -1]


def test_answers_without_room_are_left_out_and_counted(tmp_path: Path) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path, encoder=False))
    encoder = RowEncoder(TokensTask(), tokens, 4)
    rows = encoder.rows([LabelledText(0, "a film that is not", answer=" good"), LabelledText(1, "film", answer=" good")])
    assert [row.index for row in rows] == [1] and (encoder.counts["left out"], encoder.counts["cut"]) == (1, 1)


def test_plain_text_is_cut_into_pieces(tmp_path: Path) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path))
    rows = RowEncoder(MaskedTask(), tokens, 10).rows([LabelledText(0, "plot " * 20), LabelledText(1, "a film")])
    assert [(row.index, len(row.tokens)) for row in rows] == [(0, 10), (0, 10)]
    assert all(row.tokens[0] == 2 and row.tokens[-1] == 3 for row in rows)


def test_a_mask_is_berts(tmp_path: Path) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path))
    masker = Masker.of(MaskedTask(), tokens, seed=5)
    [row] = RowEncoder(MaskedTask(), tokens, 600).rows([LabelledText(0, " ".join(["plot", "film"] * 290))])
    hidden = [masker(row, step) for step in range(40)]
    drawn = np.concatenate([each.targets >= 0 for each in hidden if each.targets is not None])
    masked = np.concatenate([each.tokens == tokens.mask_token_id for each in hidden])
    same = np.concatenate([each.tokens == row.tokens for each in hidden])
    assert drawn.mean() == pytest.approx(0.15, abs=0.01) and not drawn.reshape(40, -1)[:, [0, -1]].any()
    assert masked[drawn].mean() == pytest.approx(0.8, abs=0.03) and same[drawn].mean() == pytest.approx(0.1 * 1.08, abs=0.03)
    assert same[~drawn].all()
    for each in hidden:
        assert each.targets is not None and (each.targets[each.targets >= 0] == row.tokens[each.targets >= 0]).all()
    again = masker(row, 7)
    assert again.targets is not None and (again.tokens == hidden[7].tokens).all() and (again.tokens != hidden[8].tokens).any()


def test_a_mask_hides_at_least_one_token(tmp_path: Path) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(tokenizer(tmp_path))
    masker = Masker.of(MaskedTask(share=1e-9), tokens, seed=0)
    [row] = RowEncoder(MaskedTask(), tokens, 12).rows([LabelledText(0, "a film that was a good plot film a film")])
    assert all((masker(row, step).targets >= 0).sum() == 1 for step in range(5))  # type: ignore[operator]


def test_feedback_rows_are_of_every_class_and_of_no_text_that_is_trained_on() -> None:
    rng = np.random.default_rng(0)
    texts = [LabelledText(number, f"text {rng.integers(60)}", label=0) for number in range(100)]
    texts = [LabelledText(t.index, t.text, label=float(int(t.text.split()[1]) % 3 == 0)) for t in texts]
    kept, held = split_feedback(texts, 0.2, seed=3, classes=True)
    assert sorted([*kept, *held]) == list(range(100)) and kept == sorted(kept)
    assert not {texts[i].text for i in kept} & {texts[i].text for i in held}
    for label in (0.0, 1.0):
        share = sum(texts[i].label == label for i in held) / sum(text.label == label for text in texts)
        assert share == pytest.approx(0.2, abs=0.1)
    assert split_feedback(texts, 0.2, seed=3, classes=True)[1] == held != split_feedback(texts, 0.2, seed=4, classes=True)[1]


def test_the_last_text_of_a_class_stays_to_train_on() -> None:
    texts = [LabelledText(0, "a", label=0), LabelledText(1, "b", label=1), LabelledText(2, "c", label=1)]
    kept, held = split_feedback(texts, 0.5, seed=0, classes=True)
    assert 0 in kept and len(held) == 1


@needs_data
@pytest.mark.parametrize("name", [name for name in TASKS if name != "wnli"])
def test_shared_data_of_every_task_is_read(name: str) -> None:
    task: Any = TypeAdapter[Any](TaskConfig).validate_python({"glue": name})
    folder = Path(str(HOME), FOLDERS.get(name, "glue"), name)
    texts = read_labelled(task, SourceConfig(path=str(folder / "valid.jsonl"), rows=40))[0]
    assert len(texts) == 40 and len({text.label for text in texts}) > 1
    assert (texts[0].pair is None) == (name in ("sst2", "cola"))
    bert: Any = BertTokenizerFast(vocab=f"{HOME}/tokenizers/bert-base-uncased/vocab.txt")
    rows = RowEncoder(task, bert, 64).rows(texts)
    assert all(len(row.tokens) <= 64 for row in rows)
    if name == "stsb":
        assert all(0 <= text.label <= 5 for text in texts)
