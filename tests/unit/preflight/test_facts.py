"""Facts of models and rows: each is read once."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from minidist.config.data import RenderConfig, SourceConfig
from minidist.config.models import StudentConfig
from minidist.data.exchanges import Exchange
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.errors import ModelError
from minidist.models import shape
from minidist.preflight.facts import (
    ModelFacts,
    PairFacts,
    RowReader,
    context_reader,
    longest_of_teacher,
    read_model,
    read_student,
)
from tests.support.chat import chat_tokenizer
from tests.support.config import teacher_config
from tests.support.shapes import SMALL
from tests.support.tiny import tiny_renderer


def facts(alphabet: str, **fields: Any) -> ModelFacts:
    return ModelFacts("student.model", character_tokenizer(alphabet), LlamaConfig(**SMALL | fields))


def test_the_skeleton_of_a_model_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    skeleton = shape.skeleton
    monkeypatch.setattr(shape, "skeleton", lambda config, **options: built.append(config) or skeleton(config, **options))
    model = facts("ab=")
    assert model.shape is model.shape and len(built) == 1


def test_the_context_of_a_pair_is_that_of_the_shorter_model() -> None:
    pair = PairFacts(facts("ab=", max_position_embeddings=64), facts("ab=", max_position_embeddings=48))
    assert (pair.student.context, pair.context) == (64, 48)


def test_the_vocabulary_of_a_pair_is_that_of_both_tokenizers() -> None:
    assert PairFacts(facts("ab="), facts("ab=", vocab_size=40)).vocabulary == 5
    with pytest.raises(ModelError, match="different tokenizers"):
        _ = PairFacts(facts("ab="), facts("ba=")).vocabulary


def test_a_student_without_a_checkpoint_has_the_shape_of_its_architecture() -> None:
    architecture = {"model_type": "llama"} | {key: SMALL[key] for key in ("hidden_size", "num_hidden_layers")}
    student = read_student(StudentConfig(architecture=architecture, tokenizer="characters:sort"))
    assert (student.config.hidden_size, student.rows) == (64, len(student.tokenizer))


def test_a_model_is_read_without_its_weights(tmp_path: Path) -> None:
    LlamaConfig(**SMALL).save_pretrained(tmp_path)
    character_tokenizer("ab=").save_pretrained(tmp_path)
    model = read_model(StudentConfig(model=str(tmp_path)), "student.model")
    assert (model.rows, model.shape.hidden, model.shape.layers) == (32, 64, 2)


def test_rows_say_how_many_are_used_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": text}) + "\n" for text in ("1=", "", "2=")))
    source = SourceConfig(path=str(path), prompt="{{ q }}", bad_rows="skip")
    rows = RowReader(tiny_renderer(), RenderConfig()).prompts("prompts", source)
    assert (len(rows.found), rows.skipped, rows.line) == (2, 1, f"prompts: 2 rows of {path}, 1 left out")


def in_chat(template: str | None, rows: int = 400) -> ModelFacts:
    return ModelFacts("teacher.model", chat_tokenizer(template), LlamaConfig(**SMALL | {"vocab_size": rows}))


@pytest.mark.parametrize(
    ("student", "teacher", "named", "used"),
    [
        ("chatml", "llama3", "student", "llama3"),  # the teacher's own
        ("chatml", None, "student", "chatml"),  # it has none
        (None, "llama3", "student", "llama3"),
        ("chatml", "llama3", "FILE", "gemma"),  # another one is named for all
    ],
)
def test_the_teachers_prompts_are_in_its_own_chat_template_where_it_has_one(
    tmp_path: Path, student: str | None, teacher: str | None, named: str, used: str
) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(str(chat_tokenizer("gemma").chat_template))
    data, pair = (
        RenderConfig(template_from=str(file) if named == "FILE" else named),
        PairFacts(in_chat(student), in_chat(teacher)),
    )
    asked = teacher_config(model="t", context="{{ student_prompt }} {{ hint }}")
    reader = context_reader(asked, data, pair)
    assert reader is not None and context_reader(teacher_config(model="t"), data, pair) is None
    tokens, text = reader.read(Exchange("ask", None), {"hint": "so"}, answer_tokens=4)
    written = chat_tokenizer(used).apply_chat_template(
        [{"role": "user", "content": "ask so"}], tokenize=False, add_generation_prompt=True
    )
    assert text == written and reader.renderer.whole(tokens) == written


def test_an_id_of_the_teachers_prompt_that_the_teacher_has_no_row_for_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "ask"}) + "\n")
    pair = PairFacts(in_chat(None), in_chat("chatml", rows=256))
    data, asked = RenderConfig(), teacher_config(model="t", context="{{ student_prompt }}")
    reader = RowReader(Renderer(pair.student.tokenizer, data), data, [pair], context_reader(asked, data, pair), 4)
    with pytest.raises(
        ModelError, match=r"id \d+ is used in teacher.context, and teacher.model has 256 rows of embedding; widen"
    ):
        reader.prompts("prompts", SourceConfig(path=str(path), prompt="{{ q }}"))


def test_cuts_of_the_teachers_prompts_are_counted_apart(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "ask", "hint": "x" * 40}) + "\n")
    pair, data = PairFacts(in_chat(None), in_chat(None)), RenderConfig(truncate="right")
    asked = teacher_config(model="t", context={"prompt": "{{ q }} {{ hint }}", "max_prompt_tokens": 9})
    reader = RowReader(Renderer(pair.student.tokenizer, data), data, [pair], context_reader(asked, data, pair), 4)
    rows = reader.prompts("prompts", SourceConfig(path=str(path), prompt="{{ q }}"))
    assert rows.line.endswith("; 1 prompts of the teacher were cut (data.truncate)")
    assert longest_of_teacher(rows.found, 4) == 13 and rows.found[0].teacher_text == "ask xxxxx"
