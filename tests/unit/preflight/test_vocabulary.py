"""Pairs of models: ids that both have and that mean the same are shared; others are never sampled, or refused where used."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minidist.config.data import RenderConfig, SourceConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.errors import ModelError
from minidist.models.endings import stop_ids
from minidist.preflight.facts import ModelFacts, PairFacts, RowReader, rendering_tokenizer
from minidist.preflight.lines import ending_lines, pair_lines
from minidist.preflight.vocabulary import common, meanings, shared_ids
from minidist.types import Vocabulary
from tests.support.chat import chat_tokenizer
from tests.support.shapes import SMALL


def spelled(vocabulary: dict[str, int], decoder: Any, *added: str) -> PreTrainedTokenizerBase:
    """A tokenizer with pieces as its decoder spells them, and special tokens after them."""
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoder
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in added], special_tokens=True)
    return tokenizer


def facts(tokenizer: PreTrainedTokenizerBase, rows: int | None = None, where: str = "student.model") -> ModelFacts:
    return ModelFacts(where, tokenizer, LlamaConfig(**SMALL | {"vocab_size": len(tokenizer) if rows is None else rows}))


def digits(*added: str, count: int = 4) -> PreTrainedTokenizerBase:
    """<eos>, <unk>, digits and further special tokens."""
    tokenizer = character_tokenizer("0123456789"[:count])
    tokenizer.add_tokens([AddedToken(token, special=True) for token in added], special_tokens=True)
    return tokenizer


def pair(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, *rows: int | None) -> PairFacts:
    student_rows, teacher_rows = rows or (None, None)
    return PairFacts(facts(student, student_rows), facts(teacher, teacher_rows, "teacher.model"))


@pytest.mark.parametrize(
    ("student", "teacher", "rows", "shared"),
    [
        (digits(), digits(), (6, 6), 6),
        (digits(), digits(), (64, 8), 6),  # rows that belong to no token
        (digits("<pad>"), digits(), (7, 6), 6),
        (digits(), digits("<tool>", "<image>"), (6, 8), 6),
        (digits("<pad>"), digits("<pad>"), (6, 7), 6),  # a tokenizer that is longer than its embedding
        (digits(), digits(), (5, 6), 5),
    ],
)
def test_ids_of_one_model_alone_are_not_shared(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, rows: tuple[int, int], shared: int
) -> None:
    assert pair(student, teacher, *rows).vocabulary.ids == list(range(shared))


def test_a_gap_in_one_tokenizer_is_absent_from_the_vocabulary() -> None:
    student = {"a": 0, "b": 1, "c": 2, "d": 3}
    teacher = {"a": 0, "c": 2, "d": 3, "e": 4}
    vocabulary = pair(spelled(student, None), spelled(teacher, None), 9, 9).vocabulary
    assert (vocabulary.ids, vocabulary, vocabulary.absent, vocabulary.count) == ([0, 2, 3], 4, (1,), 3)
    copied = pickle.loads(pickle.dumps(vocabulary))
    assert (copied, copied.absent) == (4, (1,))
    assert common([vocabulary, Vocabulary(3)]).ids == [0, 2]


def test_an_id_with_two_meanings_is_refused_with_both() -> None:
    other = character_tokenizer("0132")
    found = r"different tokenizers: id 4 is '2' in the student's and '3' in the teacher's, which has '2' at id 5 \(2 of 6 ids"
    with pytest.raises(ModelError, match=found):
        _ = pair(digits(), other).vocabulary
    with pytest.raises(ModelError, match=r"id 6 is '<a>' in the student's and '<b>' in the teacher's \(1 of 7"):
        _ = pair(digits("<a>"), digits("<b>")).vocabulary


def test_one_meaning_in_two_spellings_is_shared() -> None:
    """A byte-level tokenizer, and one with byte fallback, of the same text: a blank, letters, a byte that is no character."""
    level = {"\u0120a": 0, "\u00e9": 1, "b": 2, "\u0120": 3}  # a blank and a, the byte E9, b, a blank
    pieces = {"\u2581a": 0, "<0xE9>": 1, "b": 2, "\u2581": 3}
    fallback = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    student, teacher = spelled(level, decoders.ByteLevel(), "<end>"), spelled(pieces, fallback, "<end>")
    assert meanings(student, 9) == meanings(teacher, 9) == {0: b" a", 1: b"\xe9", 2: b"b", 3: b" ", 4: b"<end>"}
    assert pair(student, teacher).vocabulary.ids == [0, 1, 2, 3, 4]
    with pytest.raises(ModelError, match=r"id 1 is b'\\xe9' in the student's and 'x'"):
        shared_ids(meanings(student, 9), {1: b"x"})


def test_an_added_token_is_its_content() -> None:
    """Whether a token is special, or where a blank is stripped beside it, is no meaning of its id."""
    plain = character_tokenizer("0123")
    plain.add_tokens([AddedToken("<tool>", lstrip=True, special=False)])
    assert pair(digits("<tool>"), plain).vocabulary == 7


def rows_of(tmp_path: Path, models: PairFacts, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": text}))
    reader = RowReader(Renderer(models.student.tokenizer, RenderConfig()), RenderConfig(), [models])
    reader.prompts("prompts", SourceConfig(path=str(path), prompt="{{ q }}"))


def test_text_with_an_id_of_one_model_alone_is_refused(tmp_path: Path) -> None:
    rows_of(tmp_path, pair(digits("<pad>"), digits()), "12")
    with pytest.raises(
        ModelError, match=r"prompts: .*rows.jsonl: id 6 \('<pad>'\) is used, and .* teacher.model does not have"
    ):
        rows_of(tmp_path, pair(digits("<pad>"), digits()), "1<pad>2")
    with pytest.raises(ModelError, match=r"id 6 .* the tokenizer of teacher.model has it at id 7"):
        moved = PairFacts(facts(digits("<x>")), facts(digits(), where="teacher.model"))
        moved.teacher.__dict__["meanings"] = moved.teacher.meanings | {7: b"<x>"}
        rows_of(tmp_path, moved, "1<x>")
    with pytest.raises(ModelError, match=r"id 6 .* student.model has 6 rows of embedding"):
        rows_of(tmp_path, pair(digits("<pad>"), digits("<pad>"), 6, 7), "<pad>1")


def test_differences_that_are_accepted_are_lines_of_the_plan() -> None:
    student, teacher = digits("<pad>"), digits()
    teacher.eos_token, teacher.chat_template = "<unk>", "{{ messages }}"
    models = pair(student, teacher, 9, 6)
    _, shared, ends, templates = pair_lines(models, "student")
    assert shared == (
        "vocabulary 6 in common; 1 ids of the student alone, 2 rows of the student without a token: never sampled, of no "
        "probability"
    )
    assert "'<eos>' (0) of student.model, which ends answers, and '<unk>' (1) of the teacher" in ends
    assert templates == "chat templates of student.model and teacher differ: that of student.model is used (data.template_from)"
    assert len(pair_lines(pair(digits(), digits()), "student")) == 2


def test_the_template_is_that_of_the_student_the_teacher_or_a_file(tmp_path: Path) -> None:
    student, teacher = facts(chat_tokenizer("chatml")), facts(chat_tokenizer("chatml"), where="teacher.model")
    teacher.tokenizer.chat_template = "teacher"
    (tmp_path / "one.jinja").write_text("file")
    teacher.tokenizer.save_pretrained(tmp_path / "saved")
    chosen = {"teacher": "teacher", str(tmp_path / "one.jinja"): "file", str(tmp_path / "saved"): "teacher"}
    for name, template in chosen.items():
        tokenizer = rendering_tokenizer(RenderConfig(template_from=name), student, teacher)
        assert tokenizer.chat_template == template and len(tokenizer) == len(student.tokenizer)
    assert rendering_tokenizer(RenderConfig(), student, teacher) is student.tokenizer
    assert student.tokenizer.chat_template not in (None, "teacher", "file")
    with pytest.raises(ModelError, match=r"data.template_from: nothing cannot be read: .* set it to student, teacher, a file"):
        rendering_tokenizer(RenderConfig(template_from="nothing"), student, teacher)
    teacher.tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"data.template_from is teacher, whose tokenizer has no chat template"):
        rendering_tokenizer(RenderConfig(template_from="teacher"), student, teacher)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 3}, None, {3}),
        ({"eos_token_id": [3, 4]}, {"eos_token_id": 5}, {3, 4, 5}),
        ({"text_config": {"eos_token_id": 7}}, {"eos_token_id": [8, 8, None, -1]}, {7, 8}),
        ({}, {}, set()),  # transformers would say 2
    ],
)
def test_ids_that_end_answers_are_read_from_both_files(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, expected: set[int]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert stop_ids(str(tmp_path), "student.model") == expected
    assert stop_ids(None, "student.model") == set()


@pytest.mark.parametrize(
    ("text", "found"), [('{"eos_token_id": "</s>"}', "has eos_token_id '</s>'; expected"), ("{", "not JSON")]
)
def test_files_that_say_no_ids_are_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=f"{found}.*student.model|student.model.*{found}"):
        stop_ids(str(tmp_path), "student.model")


def test_ids_that_end_answers_are_shared_ids_and_several_are_a_line() -> None:
    student, teacher = digits("<pad>"), digits()
    stops = frozenset({0, 3, 6, 99})
    models = PairFacts(ModelFacts("student.model", student, LlamaConfig(**SMALL), stops=stops), facts(teacher))
    assert models.stops == {0, 3}
    assert ending_lines(Renderer(student, RenderConfig(), models.stops)) == ["an answer ends with any of '<eos>' (0), '1' (3)"]
    assert ending_lines(Renderer(student, RenderConfig())) == []
