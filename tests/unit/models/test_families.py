"""Each family against what transformers computes, as configs/FAMILIES.md says; what differs is refused by name."""

import re
from typing import Any

import pytest
import torch

from minidist.config.learner import LearnerConfig
from minidist.config.models import LoraConfig
from minidist.errors import ModelError
from minidist.models.families import DIFFERENT_IN_VLLM, PACKED, freeze_other_parts, other_layers
from minidist.models.heads import check_logits
from minidist.models.lora import inject
from minidist.models.names import names_in_files
from minidist.models.shape import read_shape, skeleton
from minidist.preflight.checks import check_engine
from minidist.preflight.facts import ModelFacts
from minidist.preflight.families import check_in_transformers, check_learnt
from minidist.preflight.lines import student_lines
from tests.support import family_table
from tests.support.families import FAMILIES, family_config, family_model
from tests.support.family_columns import FAST
from tests.support.tiny import tiny_renderer


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, str]]:
    return family_table.read_page()


@pytest.mark.parametrize("column", FAST)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_as_the_page_says(family: str, column: str, rows: dict[str, dict[str, str]]) -> None:
    assert family_table.cell(family, column) == rows[family][column]


def test_the_page_holds_the_recorded_cells_of_the_slow_columns(rows: dict[str, dict[str, str]]) -> None:
    slow = family_table.slow_cells()
    assert family_table.PAGE.read_text(encoding="utf-8") == family_table.page(rows)
    assert {family: {column: rows[family][column] for column in cells} for family, cells in slow.items()} == slow


def test_packed_are_the_families_that_the_page_proves(rows: dict[str, dict[str, str]]) -> None:
    assert {family for family in FAMILIES if rows[family]["packed"] == "yes"} == PACKED


def facts(name: str, **fields: Any) -> ModelFacts:
    config = family_config(name)
    for key, value in fields.items():
        setattr(config, key, value)
    return ModelFacts("student.model", tiny_renderer().tokenizer, config)


def test_logits_that_a_family_changes_in_another_way_are_refused_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    check_logits(family_config("granite"), "student.model")
    monkeypatch.setattr("minidist.models.heads._FACTORS", {})
    for family in ("granite", "cohere2", "falcon_h1"):
        with pytest.raises(ModelError, match=f"student.model: {family} is not supported: it changes its logits"):
            check_logits(family_config(family), "student.model")


def test_rows_of_a_family_that_is_not_proved_are_padded_and_the_plan_says_so() -> None:
    assert check_learnt(facts("llama"), LearnerConfig()) == []
    (line,) = check_learnt(facts("opt"), LearnerConfig())
    assert (
        line
        == "learner: rows of similar length side by side, padded (buckets), since no test proves that packed rows of "
        + ("opt do not see one another")
    )
    assert check_learnt(facts("opt"), LearnerConfig(layout="buckets")) == []


@pytest.mark.parametrize("method", [{"quant_method": "gptq", "bits": 4}, {"bits": 4}])
def test_quantised_weights_are_refused_in_transformers(method: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"student.model is quantised \((gptq|by a method that it does not name)\), .*; set x"):
        check_in_transformers(facts("llama", quantization_config=method), "set x")


@pytest.mark.parametrize("family", ["falcon_h1", "lfm2", "qwen3_next", "cohere2", "gpt_neox"])
def test_families_that_do_not_run_in_vllm_on_a_cpu_are_refused_by_name(family: str) -> None:
    with pytest.raises(ModelError, match=rf"student.model is {family}.* on a CPU.*; set rollout.engine=hf"):
        check_engine(facts(family), 0, "rollout.engine=hf")
    check_engine(facts(family), 1, "rollout.engine=hf")
    assert bool(other_layers(family_config(family))) == (family not in DIFFERENT_IN_VLLM)


def test_a_family_without_attention_is_refused_by_name() -> None:
    from transformers import MambaConfig

    with pytest.raises(ModelError, match="mamba is not supported: it has no attention"):
        read_shape(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=16))


def test_only_the_language_model_of_a_wrapped_one_is_trained() -> None:
    model = family_model("gemma3")
    freeze_other_parts(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "language_model" in name}
    line = student_lines(read_shape(family_config("gemma3")), None)[0]
    assert re.search(r"0.03 M of them are not of its language model, and stay as they are", line)
    adapted = inject(family_model("gemma3"), LoraConfig(), "base", seed=0).layers
    assert all("language_model" in layer for layer in adapted)


def test_the_plan_says_which_share_has_no_adapter() -> None:
    lora = LoraConfig(rank=2)
    shape = read_shape(family_config("qwen3_moe"), lora)
    attention, experts, routers = 2 * (64 * 64 * 2 + 64 * 32 * 2), 2 * 4 * 3 * 64 * 32, 2 * 4 * 64
    assert shape.unadapted == pytest.approx((experts + routers) / (attention + experts + routers))
    assert "67% of the weights of its layers have no adapter and stay as they are" in student_lines(shape, lora)[1]
    assert read_shape(family_config("llama"), lora).unadapted == 0


def test_adapters_that_would_be_read_as_those_of_experts_are_not_saved_alone() -> None:
    with pytest.raises(ModelError, match=r"student.lora.save is adapter, and PEFT reads adapters of gate_proj"):
        inject(family_model("qwen3_next"), LoraConfig(save="adapter"), "base", seed=0)
    inject(family_model("qwen3_next"), LoraConfig(save="adapter", targets=["q_proj"]), "base", seed=0)


def test_names_of_files_are_those_of_moved_modules_and_of_files_without_prefix() -> None:
    moved = names_in_files(skeleton(family_config("gpt_neox")), ["lm_head.weight"])
    assert "embed_out.weight" in moved
    assert "wte.weight" in names_in_files(skeleton(family_config("gpt2")), ["transformer.wte.weight"])


def test_a_window_is_shorter_than_the_text_that_is_tried() -> None:
    model, ids = family_model("mistral"), torch.arange(12)[None]
    wide = family_model("mistral", sliding_window=None)
    assert (model(ids).logits - wide(ids).logits).abs().max() > 1e-2
