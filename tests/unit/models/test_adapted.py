"""Adapters published alone give the same tensors as the whole student, from the files of their base."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minidist.config.learner import LearnerConfig
from minidist.config.models import LoraConfig
from minidist.learners.weights import as_weights
from minidist.models.adapted import adapted_names, to_tensors
from minidist.models.lora import inject
from minidist.types import Weights
from tests.support.learners import local_learner
from tests.support.tiny import tiny_model


@pytest.fixture
def made() -> Iterator[list[Any]]:
    learners: list[Any] = []
    yield learners
    for each in learners:
        asyncio.run(each.close())


def adapted(made: list[Any], path: Path, kind: str, *, dtype: str = "float32", targets: str = "all-linear") -> Any:
    """A learner whose adapters change the model, on a base in float32 files."""
    base = tiny_model(kind, tie_word_embeddings=True)
    if not path.exists():
        base.save_pretrained(path)
    model = base.to(getattr(torch, dtype))
    adapters = inject(model, LoraConfig(rank=2, alpha=3, targets=[targets]), str(path), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    made.append(local_learner(model, LearnerConfig(), {}, adapters=adapters))
    return made[-1]


def published(learner: Any, *, whole: bool) -> Weights:
    weights = asyncio.run(learner.weights(whole))
    assert weights is not None
    return weights


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_alone_are_the_whole_student_bit_by_bit(kind: str, dtype: str, made: list[Any], tmp_path: Path) -> None:
    learner = adapted(made, tmp_path / "base", kind, dtype=dtype)
    alone, whole = published(learner, whole=False), published(learner, whole=True)
    assert whole.adaptation is None and alone.adaptation is not None
    assert alone.nbytes < whole.nbytes / 2
    assert same(dict(to_tensors(alone)), dict(to_tensors(whole)))
    base = {
        name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(tmp_path / "base" / "model.safetensors").items()
    }
    files, found = alone.adaptation.files, dict(to_tensors(alone))
    assert {name for name in found if not torch.equal(found[name], base[files[name]])} == set(adapted_names(alone))


def test_only_wanted_tensors_are_read(made: list[Any], tmp_path: Path) -> None:
    alone = published(adapted(made, tmp_path / "base", "llama"), whole=False)
    names = [name for name, _ in to_tensors(alone, lambda name: "layers.1." in name)]
    assert names and all("layers.1." in name for name in names)


def test_files_without_the_base_models_prefix_are_found(made: list[Any], tmp_path: Path) -> None:
    learner = adapted(made, tmp_path / "base", "gpt2")
    file = tmp_path / "base" / "model.safetensors"
    short = {name.removeprefix("transformer."): tensor.clone() for name, tensor in load_file(file).items()}
    save_file(short, file, metadata={"format": "pt"})
    alone = published(learner, whole=False)
    assert alone.adaptation is not None and "h.0.attn.c_attn.weight" in alone.adaptation.files.values()
    assert same(dict(to_tensors(alone)), dict(to_tensors(published(learner, whole=True))))


@pytest.mark.parametrize("change", ["shape", "missing"])
def test_files_that_hold_other_tensors_have_the_whole_student_published(change: str, made: list[Any], tmp_path: Path) -> None:
    learner = adapted(made, tmp_path / "base", "llama")
    file = tmp_path / "base" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    norm = tensors.pop("model.norm.weight")
    save_file(tensors if change == "missing" else tensors | {"model.norm.weight": norm[:-1].clone()}, file)
    assert published(learner, whole=False).adaptation is None


def test_a_new_base_is_read_after_a_checkpoint_was_loaded(made: list[Any], tmp_path: Path) -> None:
    learner = adapted(made, tmp_path / "base", "llama")
    published(learner, whole=False)
    tiny_model("llama", seed=5, tie_word_embeddings=True).save_pretrained(tmp_path / "other")
    asyncio.run(learner.load(tmp_path / "other"))
    assert same(dict(to_tensors(published(learner, whole=False))), dict(to_tensors(published(learner, whole=True))))
    assert published(learner, whole=False).adaptation is not None


def test_weights_without_adapters_are_their_tensors() -> None:
    state = dict(tiny_model().state_dict())
    assert same(dict(to_tensors(as_weights(1, state))), state)
