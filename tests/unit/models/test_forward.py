"""Hidden states of flat micro-batches: rows do not see one another, in either layout."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minidist.data.batching import pack
from minidist.errors import ModelError
from minidist.models import forward
from minidist.models.forward import padded_layout
from minidist.types import Row
from tests.support.micro import FAMILIES, alone, states, uneven_rows
from tests.support.tiny import VOCABULARY, tiny_model

LAYOUTS = pytest.mark.parametrize("padded", [False, True], ids=["packed", "buckets"])


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


def placed(family: str, *, attention: str = "sdpa", dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model on a GPU, as far as the choice of its layout sees it."""
    config = SimpleNamespace(model_type=family, _attn_implementation=attention)
    model = SimpleNamespace(device=torch.device("cuda"), config=config, dtype=dtype, _supports_flash_attn=True)
    model.set_attn_implementation = lambda name: setattr(config, "_attn_implementation", name)
    return model


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Layouts that have been tried on the loaded model: whether padded. All are right."""
    layouts: list[bool] = []
    monkeypatch.setattr(forward, "_difference", lambda model, *, padded: layouts.append(padded))
    return layouts


def test_rows_of_proved_families_are_packed_on_a_cpu_by_segments() -> None:
    model = tiny_model("llama")
    assert not padded_layout("auto", model)
    assert model.config._attn_implementation == "minidist_segments"
    assert padded_layout("buckets", tiny_model("llama"))


def test_rows_are_packed_on_a_gpu_that_has_a_kernel_for_them(tried: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, attention to a packed row compares all its tokens with one another."""
    assert padded_layout("auto", placed("llama")), "no kernel is installed"
    monkeypatch.setattr(forward, "is_flash_attn_2_available", lambda: True)
    model = placed("llama")
    assert not padded_layout("auto", model)
    assert model.config._attn_implementation == "flash_attention_2"
    assert padded_layout("auto", placed("llama", dtype=torch.float32)), "the kernel takes 16 bits"
    assert padded_layout("auto", placed("gemma2", attention="eager")), "scores are capped"
    assert padded_layout("auto", placed("opt")), "packed rows of opt see one another"
    assert not padded_layout("packed", placed("llama", dtype=torch.float32)), "by a mask, where it is asked for"
    assert tried == [True, True, False, True, True, True, True, False], "what is packed is tried on its device"


MIXING = {
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 2, "max_seq_len": 128},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True},
    "biogpt": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96},
    "xglm": {"d_model": 64, "num_layers": 2, "attention_heads": 2, "ffn_dim": 96},
}
"""Families whose code does not read the borders of packed rows from their positions."""


@pytest.mark.parametrize("family", MIXING)
def test_packed_rows_that_see_one_another_are_refused_where_asked_for_and_else_side_by_side(family: str) -> None:
    torch.manual_seed(0)
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = AutoConfig.for_model(family, **ids, **MIXING[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    assert padded_layout("auto", model)
    with pytest.raises(ModelError, match=r"packed rows of \w+ are not computed as rows alone .* set learner.layout=buckets"):
        padded_layout("packed", model)


def test_a_model_whose_packed_rows_are_wrong_gets_rectangles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(forward, "use_segments", lambda model: True)
    model.set_attn_implementation("eager")
    monkeypatch.setattr(model.config, "model_type", "qwen2")
    whole = type(model.base_model).forward
    blind = lambda self, position_ids=None, **options: whole(self, **options)  # noqa: E731
    monkeypatch.setattr(type(model.base_model), "forward", blind)
    with caplog.at_level("WARNING"):
        assert padded_layout("auto", model)
    assert "packed rows of LlamaForCausalLM are not computed as rows alone are" in caplog.text
    with pytest.raises(ModelError, match=r"set learner.layout=buckets"):
        padded_layout("packed", model)


def test_a_model_whose_rectangles_are_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_difference", lambda model, *, padded: "they differ" if padded else None)
    with pytest.raises(ModelError, match="LlamaForCausalLM does not compute rows side by side as rows alone"):
        padded_layout("auto", tiny_model("llama"))
