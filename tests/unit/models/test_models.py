"""Models on flat micro-batches: rows do not see one another, heads equal the model's own, names and paths are checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from minidist.config.models import StudentConfig
from minidist.data.batching import collate, pack
from minidist.data.rendering import character_tokenizer
from minidist.errors import ModelError
from minidist.models.arrays import to_array, to_tensor
from minidist.models.files import resolve
from minidist.models.forward import hidden_states, padded_layout
from minidist.models.heads import apply_head, head_of, load_teacher_head, vocabulary_size
from minidist.models.hub import architecture, build_student, load_config, load_model, load_tokenizer
from minidist.types import Row, TeacherHead
from tests.support.config import teacher_config
from tests.support.tiny import VOCABULARY, random_rollouts, row_logits, tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2"]
LAYOUTS = pytest.mark.parametrize("padded", [False, True], ids=["packed", "buckets"])


def uneven_rows(seed: int = 0) -> tuple[Row, ...]:
    return collate("rows", random_rollouts([(3, 4), (1, 9), (6, 1), (2, 2), (5, 8)], seed=seed)).rows


@torch.no_grad()
def states(model: PreTrainedModel, rows: tuple[Row, ...], padded: bool, budget: int = 60) -> dict[int, torch.Tensor]:
    """Hidden states at each row's loss tokens, from micro-batches."""
    found: dict[int, torch.Tensor] = {}
    for micro in pack(rows, budget=budget, padded=padded):
        parts = hidden_states(model, micro, padded=padded).split([len(rows[index].labels) for index in micro.rows])
        found |= dict(zip(micro.rows, parts, strict=True))
    return found


@torch.no_grad()
def alone(model: PreTrainedModel, row: Row) -> torch.Tensor:
    ids = torch.tensor(row.tokens[None].astype(np.int64))
    return model.base_model(input_ids=ids).last_hidden_state[0, row.outputs]


@LAYOUTS
@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_together_equal_rows_alone(kind: str, padded: bool) -> None:
    model, rows = tiny_model(kind), uneven_rows()
    assert len(pack(rows, budget=60, padded=padded)) < len(rows)
    for index, got in states(model, rows, padded).items():
        assert (got - alone(model, rows[index])).abs().max() < 1e-5


@LAYOUTS
@pytest.mark.parametrize("kind", FAMILIES)
def test_perturbed_row_moves_no_other(kind: str, padded: bool) -> None:
    model, rows = tiny_model(kind), uneven_rows()
    before = states(model, rows, padded, budget=1000)
    for changed in range(len(rows)):
        row = rows[changed]
        moved = (*rows[:changed], Row((row.tokens + 1) % VOCABULARY, row.outputs, row.labels), *rows[changed + 1 :])
        after = states(model, moved, padded, budget=1000)
        differs = [bool((before[index] - after[index]).abs().max() > 1e-6) for index in range(len(rows))]
        assert differs == [index == changed for index in range(len(rows))]


@LAYOUTS
def test_sliding_window_holds_in_either_layout(padded: bool) -> None:
    model, rows = tiny_model("mistral", sliding_window=4), uneven_rows()
    for index, got in states(model, rows, padded).items():
        assert (got - alone(model, rows[index])).abs().max() < 1e-5


@LAYOUTS
@pytest.mark.parametrize("kind", FAMILIES)
def test_head_on_hidden_states_gives_the_logits(kind: str, padded: bool) -> None:
    model, rows = tiny_model(kind), uneven_rows()
    for index, hidden in states(model, rows, padded).items():
        with torch.no_grad():
            assert (head_of(model)(hidden) - row_logits(model, rows[index])).abs().max() < 1e-4


def test_layout_of_a_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [padded_layout("auto", cpu), padded_layout("auto", gpu)] == [True, False]
    assert [padded_layout("buckets", gpu), padded_layout("packed", cpu)] == [True, False]


HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {"tie_word_embeddings": False}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),
    "biased": ("phi", {}),
    "soft-capped": ("gemma2", {"final_logit_softcapping": 2.0}),
    "multiplied": ("cohere", {"logit_scale": 0.25}),
    "divided": ("granite", {"logits_scaling": 3.0}),
}


@torch.no_grad()
def logits_from(head: TeacherHead, hidden: torch.Tensor) -> torch.Tensor:
    bias = None if head.bias is None else torch.from_numpy(head.bias)
    return apply_head(head, torch.from_numpy(head.weight), bias)(hidden)


@pytest.mark.parametrize("name", HEADS)
def test_teacher_head_from_its_checkpoint(tmp_path: Path, name: str) -> None:
    kind, fields = HEADS[name]
    model = tiny_model(kind, **fields)
    if (bias := getattr(model.get_output_embeddings(), "bias", None)) is not None:
        torch.nn.init.normal_(bias)
    model.save_pretrained(tmp_path)
    head = load_teacher_head(teacher_config(model=str(tmp_path)), None)
    row = uneven_rows()[1]
    got = logits_from(head, alone(model, row))
    with torch.no_grad():
        assert (got - row_logits(model, row)).abs().max() < 1e-4
        assert torch.equal(got, head_of(model)(alone(model, row)))


def test_teacher_head_from_shards(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    head = load_teacher_head(teacher_config(model=str(tmp_path)), None)
    assert np.array_equal(head.weight, model.lm_head.weight.detach().numpy())


def test_vocabulary_slice_leaves_no_probability_outside(tmp_path: Path) -> None:
    model = tiny_model("llama", vocabulary=20)
    model.save_pretrained(tmp_path)
    hidden = alone(model, uneven_rows()[0])
    sliced = logits_from(load_teacher_head(teacher_config(model=str(tmp_path)), VOCABULARY), hidden)
    assert sliced.shape == (4, VOCABULARY)
    assert torch.allclose(sliced.softmax(-1).sum(-1), torch.ones(4))
    with torch.no_grad():
        assert torch.equal(head_of(model, VOCABULARY)(hidden), sliced)
    assert vocabulary_size(model.config) == 20


def test_sixteen_bit_head_gives_float32_logits(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    head = load_teacher_head(teacher_config(model=str(tmp_path), dtype="bfloat16"), None)
    assert head.weight.dtype == np.uint16
    model = load_model(teacher_config(model=str(tmp_path), dtype="bfloat16"), "teacher.model")
    hidden = torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        got, own = apply_head(head, to_tensor(head.weight, "bfloat16"), None)(hidden), head_of(model)(hidden)
    assert got.dtype == own.dtype == torch.float32
    assert torch.equal(got, own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_arrays_travel_unchanged(dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 3).mul(100).to(dtype)
    array, name = to_array(tensor.T)
    array.setflags(write=False)  # as Ray hands it out
    back = to_tensor(array, name)
    assert back.dtype == dtype
    assert torch.equal(back, tensor.T)


def student(**fields: Any) -> StudentConfig:
    shape = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    return StudentConfig(architecture=shape | {"num_attention_heads": 2} | fields, tokenizer="characters:sort")


def test_architecture_takes_vocabulary_and_special_tokens_from_the_tokenizer() -> None:
    tokenizer = character_tokenizer("0123456789=")
    config = architecture(student(tie_word_embeddings=True), tokenizer)
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (VOCABULARY, 0, None)
    assert (config.hidden_size, config.tie_word_embeddings) == (32, True)


def test_unknown_architecture_is_refused() -> None:
    tokenizer = character_tokenizer("0123456789=")
    with pytest.raises(ModelError, match=r"student.architecture.hidden_sise is no field of a llama configuration"):
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
    with pytest.raises(ModelError, match=r"^teacher.model: no directory nobody/nothing, and the hub does not give it: ."):
        resolve("nobody/nothing", "teacher.model")


def test_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"teacher.model: .* holds no usable config.json"):
        load_config(teacher_config(model=str(tmp_path)), "teacher.model")
    with pytest.raises(ModelError, match=r"teacher.model: .* holds no usable tokenizer"):
        load_tokenizer(str(tmp_path), "teacher.model")
    tiny_model().config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"teacher.model: cannot load"):
        load_model(teacher_config(model=str(tmp_path)), "teacher.model")
    with pytest.raises(ModelError, match="no output head"):
        load_teacher_head(teacher_config(model=str(tmp_path)), None)


def test_saved_tokenizer_is_the_same_one(tmp_path: Path) -> None:
    made = load_tokenizer("characters:sort", "student.tokenizer")
    made.save_pretrained(tmp_path)
    read = load_tokenizer(str(tmp_path), "student.model")
    assert read.get_vocab() == made.get_vocab()
    assert read("3=1")["input_ids"] == made("3=1")["input_ids"]
    assert (read.eos_token_id, read.pad_token_id) == (made.eos_token_id, made.pad_token_id)
