"""Output heads: the model's own logits, from hidden states in memory and from a head read off its checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minidist.errors import ModelError
from minidist.losses.chunked import LinearHead
from minidist.models.heads import check_head, head_of, load_teacher_head, vocabulary_size
from minidist.models.hub import load_model
from minidist.types import Vocabulary
from tests.support.config import teacher_config
from tests.support.divergences import FAMILY
from tests.support.micro import FAMILIES, alone, states, uneven_rows
from tests.support.tiny import VOCABULARY, row_logits, tiny_model

LAYOUTS = pytest.mark.parametrize("padded", [False, True], ids=["packed", "buckets"])


@LAYOUTS
@pytest.mark.parametrize("kind", FAMILIES)
def test_head_on_hidden_states_gives_the_logits(kind: str, padded: bool) -> None:
    model, rows = tiny_model(kind), uneven_rows()
    for index, hidden in states(model, rows, padded).items():
        with torch.no_grad():
            assert (head_of(model)(hidden) - row_logits(model, rows[index])).abs().max() < 1e-4


HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {"tie_word_embeddings": False}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),
    "biased": ("phi", {}),
    "soft-capped": ("gemma2", {"final_logit_softcapping": 2.0}),
    "multiplied": ("cohere", {"logit_scale": 0.25}),
    "divided": ("granite", {"logits_scaling": 3.0}),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_teacher_head_is_read_from_its_checkpoint(tmp_path: Path, name: str) -> None:
    kind, fields = HEADS[name]
    model = tiny_model(kind, **fields)
    if (bias := getattr(model.get_output_embeddings(), "bias", None)) is not None:
        torch.nn.init.normal_(bias)
    model.save_pretrained(tmp_path)
    head = load_teacher_head(teacher_config(model=str(tmp_path)), None)
    row = uneven_rows()[1]
    with torch.no_grad():
        got = head(alone(model, row))
        assert (got - row_logits(model, row)).abs().max() < 1e-4
        assert torch.equal(got, head_of(model)(alone(model, row)))


def test_of_a_teacher_on_the_hub_only_the_files_of_its_head_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama", tie_word_embeddings=False).save_pretrained(tmp_path, max_shard_size="40KB")
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append([pattern for pattern in allow_patterns if "safetensors" in pattern])
        return str(tmp_path)

    monkeypatch.setattr("minidist.models.files.snapshot_download", download)
    load_teacher_head(teacher_config(model="hub/teacher"), None)
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(files.values())) > 2
    assert asked[-1] == [files["lm_head.weight"]] and all(not each for each in asked[:-1])


def test_a_teacher_head_is_read_from_shards(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    head = load_teacher_head(teacher_config(model=str(tmp_path)), None)
    assert torch.equal(head.weight, model.lm_head.weight)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_absent_ids_take_no_part_in_a_divergence_or_its_gradient(name: str) -> None:
    """Values and gradients are those of heads that have no rows for them."""
    generator, hidden_ND = torch.Generator().manual_seed(0), torch.randn(6, 8)
    weights = [torch.randn(9, 8, generator=generator) for _ in range(2)]
    kept = [0, 1, 3, 5, 6]

    def found(cut: list[int] | slice, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = hidden_ND.clone().requires_grad_()
        student, teacher = (LinearHead(weight[cut], vocabulary=vocabulary)(hidden).log_softmax(-1) for weight in weights)
        value_N = FAMILY[name](student, teacher.detach())
        return value_N.detach(), torch.autograd.grad(value_N.sum(), hidden)[0]

    for masked, exact in zip(found(slice(None), Vocabulary(7, [2, 4])), found(kept, 5), strict=True):
        assert torch.isfinite(masked).all() and torch.allclose(masked, exact, atol=1e-5)


def test_a_vocabulary_slice_leaves_no_probability_outside(tmp_path: Path) -> None:
    model = tiny_model("llama", vocabulary=20)
    model.save_pretrained(tmp_path)
    hidden = alone(model, uneven_rows()[0])
    sliced = load_teacher_head(teacher_config(model=str(tmp_path)), VOCABULARY)(hidden)
    assert sliced.shape == (4, VOCABULARY)
    assert torch.allclose(sliced.softmax(-1).sum(-1), torch.ones(4))
    with torch.no_grad():
        assert torch.equal(head_of(model, VOCABULARY)(hidden), sliced)
    assert vocabulary_size(model.config) == 20


def test_a_sixteen_bit_head_gives_float32_logits(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    head = load_teacher_head(teacher_config(model=str(tmp_path), dtype="bfloat16"), None)
    assert head.weight.dtype == torch.bfloat16
    model = load_model(teacher_config(model=str(tmp_path), dtype="bfloat16"), "teacher.model")
    hidden = torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        wanted, got = head_of(model)(hidden), head(hidden)
    assert got.dtype == wanted.dtype == torch.float32
    assert torch.equal(got, wanted)


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    tiny_model().config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no output head in its safetensors files.*set teacher\.payload=top_k"):
        load_teacher_head(teacher_config(model=str(tmp_path)), None)


def test_a_family_that_changes_its_logits_in_another_way_is_refused() -> None:
    model = tiny_model()
    forward = model.forward

    def shifted(**inputs: Any) -> Any:
        found = forward(**inputs)
        found.logits = found.logits.roll(1, -1)
        return found

    model.forward = shifted  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="LlamaForCausalLM is not supported: it changes its logits after the output head"):
        check_head(model)
