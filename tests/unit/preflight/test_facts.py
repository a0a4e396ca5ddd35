"""Facts of models and rows: each is read once."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from minidist.config.data import RenderConfig, SourceConfig
from minidist.config.models import StudentConfig
from minidist.data.rendering import character_tokenizer
from minidist.errors import ModelError
from minidist.models import shape
from minidist.preflight.facts import ModelFacts, PairFacts, RowReader, read_model, read_student
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
