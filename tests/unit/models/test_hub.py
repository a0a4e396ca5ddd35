"""Models and tokenizers from directories and names: configuration, architecture, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from minidist.config.models import StudentConfig
from minidist.data.rendering import character_tokenizer
from minidist.errors import ModelError
from minidist.models.files import resolve
from minidist.models.hub import architecture, build_student, load_config, load_model, load_tokenizer
from tests.support.config import teacher_config
from tests.support.tiny import VOCABULARY, tiny_model


def student(**fields: Any) -> StudentConfig:
    shape = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    return StudentConfig(architecture=shape | {"num_attention_heads": 2} | fields, tokenizer="characters:sort")


def test_architecture_takes_vocabulary_and_special_tokens_from_the_tokenizer() -> None:
    tokenizer = character_tokenizer("0123456789=")
    config = architecture(student(tie_word_embeddings=True), tokenizer)
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (VOCABULARY, 0, None)
    assert (config.hidden_size, config.tie_word_embeddings) == (32, True)


def test_a_model_without_the_files_of_its_tokenizer_is_refused(tmp_path: Path) -> None:
    """transformers would make a tokenizer that knows no word."""
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match=r"^teacher.model: .* has no usable tokenizer \(set teacher.tokenizer .*no vocabulary"):
        load_tokenizer(str(tmp_path), "teacher.model")


def test_unknown_architecture_is_refused() -> None:
    tokenizer = character_tokenizer("0123456789=")
    with pytest.raises(ModelError, match=r"student.architecture.hidden_sise is not a field of a llama configuration"):
        architecture(student(hidden_sise=3), tokenizer)
    with pytest.raises(ModelError, match=r"student.architecture.model_type: .*lama"):
        architecture(student(model_type="lama"), tokenizer)


def test_untrained_student_is_a_function_of_its_seed() -> None:
    tokenizer = character_tokenizer("0123456789=")
    one, same, other = (build_student(student(), tokenizer, seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["runs/none/final", "./none", "/nowhere/none"])
def test_missing_model_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=rf"^teacher.model: no model directory at {name}; .* or correct the path$"):
        resolve(name, "teacher.model")


def test_hub_name_without_a_hub_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^teacher.model: nobody/nothing is not a directory, and the hub did not provide it"):
        resolve("nobody/nothing", "teacher.model")


def test_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"teacher.model: .* has no usable config.json"):
        load_config(teacher_config(model=str(tmp_path)), "teacher.model")
    with pytest.raises(ModelError, match=r"teacher.model: .* has no usable tokenizer"):
        load_tokenizer(str(tmp_path), "teacher.model")
    tiny_model().config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"teacher.model: cannot load"):
        load_model(teacher_config(model=str(tmp_path)), "teacher.model")


def test_a_saved_tokenizer_loads_unchanged(tmp_path: Path) -> None:
    made = load_tokenizer("characters:sort", "student.tokenizer")
    made.save_pretrained(tmp_path)
    read = load_tokenizer(str(tmp_path), "student.model")
    assert read.get_vocab() == made.get_vocab()
    assert read("3=1")["input_ids"] == made("3=1")["input_ids"]
    assert (read.eos_token_id, read.pad_token_id) == (made.eos_token_id, made.pad_token_id)
