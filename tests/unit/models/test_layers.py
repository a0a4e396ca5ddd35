"""Students cut from their teachers."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from minidist.config.task import ClassesTask
from minidist.data.labelled import LabelledText
from minidist.errors import ModelError
from minidist.models.layers import check_cut, cut, cut_config, layer_count, layer_counts
from minidist.types import LabelledRow, TaskFacts
from tests.support.classifiers import SHAPES, encoded, predictor

TASK = ClassesTask(names=["negative", "positive"])


def rows(made: Any) -> list[LabelledRow]:
    return encoded(made, TASK, [LabelledText(0, "this film was great"), LabelledText(1, "dull plot")])


@pytest.mark.parametrize("family", SHAPES)
def test_a_cut_model_saves_and_loads_as_one_of_its_size(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path / "tokenizer", family)
    whole = made.predict(rows(made)).logits_NC.detach()
    cut(made.model, [0, 2])
    found = made.predict(rows(made)).logits_NC
    assert layer_count(made.model.config) == 2 and not torch.allclose(found, whole, atol=1e-4)
    kept = [vars(module).get(field) for module in made.model.modules() for field in ("n_layers", "num_layers")]
    assert 3 not in kept  # beside the configuration, as DistilBERT does
    made.save(tmp_path / "cut")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut")
    states = loaded.state_dict()
    assert all(torch.equal(states[name], each) for name, each in made.model.state_dict().items())
    made.model = loaded.eval()
    assert torch.equal(made.predict(rows(made)).logits_NC, found)


@pytest.mark.parametrize("family", SHAPES)
def test_a_cut_of_all_layers_is_the_model_and_of_the_first_ones_its_beginning(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path, family)
    whole = made.predict(rows(made), hidden=True)
    cut(made.model, [0, 1, 2])
    assert torch.equal(made.predict(rows(made)).logits_NC, whole.logits_NC)
    cut(made.model, [0, 1])
    found = made.predict(rows(made), hidden=True).hidden
    # Before the last norm, which some families apply to the last state.
    assert len(found) == 3 and all(torch.equal(a, b) for a, b in zip(found[:2], whole.hidden[:2], strict=True))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_cut_decoder_writes_with_a_cache_what_it_writes_without(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path, family, TaskFacts("tokens"))
    cut(made.model, [0, 2])
    ids = torch.tensor([[6, 9, 12, 7]])
    options: Any = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    written = [made.model.generate(ids, use_cache=cached, **options).tolist() for cached in (True, False)]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([0, 3], "names layer 3, and the model has 3 layers, numbers 0 to 2; name layers that it has"),
        ([-1], "names layer -1"),
        ([1, 1], r"is \[1, 1\]; give one layer or more, each once, in rising order"),
        ([2, 0], "in rising order"),
        ([], "give one layer or more"),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused(tmp_path: Path, layers: list[int], said: str) -> None:
    made = predictor(tmp_path, "bert")
    with pytest.raises(ModelError, match=said):
        cut(made.model, layers)
    assert layer_count(made.model.config) == 3


def test_a_cut_without_the_first_layer_keeps_t5s_relative_positions(tmp_path: Path) -> None:
    made = predictor(tmp_path / "tokenizer", "t5")
    table = made.model.get_encoder().block[0].layer[0].SelfAttention.relative_attention_bias.weight.detach().clone()
    cut(made.model, [1, 2])
    first = made.model.get_encoder().block[0].layer[0].SelfAttention
    assert torch.equal(first.relative_attention_bias.weight, table)
    found = made.predict(rows(made)).logits_NC
    made.save(tmp_path / "cut")
    made.model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut").eval()
    assert torch.equal(made.predict(rows(made)).logits_NC, found)


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2}
SMALL |= {"intermediate_size": 32, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
GROUPED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_experts_per_tok": 1}
LLAMA4 = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 32, "interleave_moe_layer_step": 2}
VISION = SMALL | {"image_size": 28, "patch_size": 14}
# Families whose layers are not all alike: dense or with experts, with a window or without, beside a second stack.
UNLIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "experts but in some": ("qwen3_moe", SMALL | EXPERTS | {"mlp_only_layers": [1, 3]}),
    "experts in every second": ("qwen2_moe", SMALL | EXPERTS | {"decoder_sparse_step": 2}),
    "experts after the first": ("glm4_moe", SMALL | GROUPED | {"moe_intermediate_size": 8, "first_k_dense_replace": 2}),
    "experts in a list": ("llama4_text", SMALL | LLAMA4 | {"attention_chunk_size": 4}),
    "windows": ("cohere2", SMALL | {"sliding_window": 2}),
    "images": ("gemma3", {"text_config": SMALL, "vision_config": VISION, "mm_tokens_per_image": 4}),
}


def tiny(maker: Any, family: str, fields: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return maker.from_config(AutoConfig.for_model(family, **deepcopy(fields))).eval()


def layers_of(model: Any) -> list[Any]:
    """The modules themselves."""
    decoder = model.get_decoder()
    if hasattr(decoder, "h"):
        return list(decoder.h)
    return list(decoder.layers if hasattr(decoder, "layers") else decoder.model.layers)


@pytest.mark.parametrize("layers", [[0, 2], [1, 3], [1, 2, 3]], ids=str)
@pytest.mark.parametrize("name", UNLIKE)
def test_layers_that_are_not_alike_load_as_what_they_were(tmp_path: Path, name: str, layers: list[int]) -> None:
    model = tiny(AutoModelForCausalLM, *UNLIKE[name])
    config = deepcopy(model.config)
    check_cut(config, layers, "student.init.layers")
    assert layer_count(config) == 4  # a check leaves it
    before = layers_of(model)
    cut(model, layers).save_pretrained(tmp_path)
    assert layers_of(model) == [before[layer] for layer in layers]
    loaded, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    ids = torch.arange(3, 15)[None]
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    with torch.device("meta"):  # what the plan measures
        planned = AutoModelForCausalLM.from_config(cut_config(config, layers))
    assert {key: each.shape for key, each in planned.state_dict().items()} == {
        key: each.shape for key, each in model.state_dict().items()
    }


HYBRID = SMALL | EXPERTS | {"layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2}
HYBRID |= {"linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1, "attn_layer_indices": [1, 3]}
OLMO = {key: value for key, value in HYBRID.items() if key not in EXPERTS}
ZAMBA = {"mamba_d_state": 4, "n_mamba_heads": 2, "attention_head_dim": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False}
ZAMBA |= {"layers_block_type": ["hybrid", "mamba"] * 2}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2}
JAMBA |= {"mamba_d_state": 4, "mamba_dt_rank": 4}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 4, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
SHARED = {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 50, "laurel_rank": 4}
SHARED |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "intermediate_size": [32] * 4}
SHARED |= {"activation_sparsity_pattern": [0.0] * 4}
CUTS: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    "gpt2": ("gpt2", GPT2, [1, 3]),
    "scaled gpt2": ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}, [0, 1]),
    "llama": ("llama", SMALL, [0, 3]),
    "windows": ("cohere2", SMALL | {"sliding_window": 2}, [1, 3]),
    "linear attention": ("qwen3_next", HYBRID, [0, 3]),
    "attention in a list": ("bamba", SMALL | MAMBA, [0, 3]),
    "attention in every second": ("jamba", SMALL | JAMBA, [2, 3]),
}


def pass_by(model: Any, dropped: list[int]) -> None:
    """Let some layers return what they read, as if a manual forward pass left them out."""
    for number in dropped:
        layer = (model.h if hasattr(model, "h") else model.layers)[number]

        def skip(module: Any, inputs: Any, output: Any) -> Any:
            return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

        layer.register_forward_hook(skip)


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_models_states_are_those_of_a_forward_pass_through_the_kept_layers(tmp_path: Path, name: str) -> None:
    family, fields, layers = CUTS[name]
    model, ids = tiny(AutoModelForCausalLM, family, fields), torch.arange(3, 15)[None]
    manual = deepcopy(model).base_model
    pass_by(manual, [number for number in range(4) if number not in layers])
    expected = manual(ids, use_cache=False).last_hidden_state
    cut(model, layers).save_pretrained(tmp_path)
    assert torch.allclose(model.base_model(ids, use_cache=False).last_hidden_state, expected, atol=1e-6)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(loaded.base_model(ids, use_cache=False).last_hidden_state, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "fields", "layers", "part"),
    [
        ("qwen3_next", HYBRID, [0, 2], r"is \[0, 2\], .* attention of the qwen3_next are \[1, 3\], .* keep one of them"),
        ("bamba", SMALL | MAMBA, [0, 2], r"layers with attention of the bamba are \[1, 3\], .* keep one of them"),
        ("jamba", SMALL | JAMBA, [0, 2], r"layers with attention of the jamba are \[1, 3\], .* keep one of them"),
        ("olmo_hybrid", OLMO, [1, 3], r"\[1, 3\] alone make no olmo_hybrid: .* at least one 'linear_attention' layer"),
        ("zamba", SMALL | ZAMBA, [0, 1], "layers of a zamba share weights, and cannot be cut; set a smaller model"),
        ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}, [0, 2], "by the layer's number, .* first layers, 0 to 1"),
        ("gemma3n_text", SMALL | SHARED, [0, 1], r"layers of a gemma3n_text share .* cannot be cut; set a smaller model"),
        ("gemma3n_text", SMALL | SHARED, [0, 1, 2, 3], "and cannot be cut"),
        ("gemma3n_text", SMALL | SHARED | {"num_kv_shared_layers": 0}, [0, 1], "and cannot be cut"),
    ],
)
def test_layers_that_mean_another_thing_at_another_number_are_refused(
    family: str, fields: dict[str, Any], layers: list[int], part: str
) -> None:
    config = AutoConfig.for_model(family, **deepcopy(fields))
    with pytest.raises(ModelError, match=part):
        check_cut(config, layers, "student.init.layers")
    assert layer_count(config) == 4


SIDES = {"vocab_size": 50, "d_model": 16, "num_heads": 2, "d_kv": 8, "d_ff": 32, "num_layers": 4, "decoder_start_token_id": 0}
BART = {"vocab_size": 50, "d_model": 16, "encoder_layers": 4, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 2}


@pytest.mark.parametrize(
    ("family", "fields"),
    [("t5", SIDES | {"num_decoder_layers": 2}), ("bart", BART | {"decoder_layers": 2})],
    ids=["t5", "bart"],
)
def test_an_encoder_and_a_decoder_of_different_depths_keep_the_same_layers(
    tmp_path: Path, family: str, fields: dict[str, Any]
) -> None:
    model = tiny(AutoModelForSeq2SeqLM, family, fields)
    has = "has 4 layers in its encoder and 2 in its decoder, 0 to 1 in both; name layers that it has"
    with pytest.raises(ModelError, match=has):
        cut(model, [0, 2])
    cut(model, [1]).save_pretrained(tmp_path)
    assert [layer_count(side.config) for side in (model.get_encoder(), model.get_decoder())] == [1, 1]
    loaded, found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    sides = [getattr(side, "block", None) or side.layers for side in (loaded.get_encoder(), loaded.get_decoder())]
    assert [len(side) for side in sides] == [1, 1] and not found["missing_keys"] and not found["unexpected_keys"]
    ids = torch.arange(3, 15)[None]
    both = [each.eval()(ids, decoder_input_ids=ids[:, :4]).logits for each in (model, loaded)]
    assert torch.equal(*both)
    options: Any = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(*(model.generate(ids, use_cache=cached, **options) for cached in (True, False)))


@pytest.mark.parametrize(
    ("family", "fields", "layers", "part"),
    [
        (
            "modernbert",
            {"cls_token_id": 1},
            [1, 3],
            r"cannot describe \[1, 3\] alone .*; keep the first layers, 0 to 1, or",
        ),
        ("albert", {}, [0, 2], "has no list of 4 layers to cut; set a smaller model"),
    ],
)
def test_layers_that_no_configuration_describes_are_refused_before_weights_are_read(
    family: str, fields: dict[str, Any], layers: list[int], part: str
) -> None:
    config = AutoConfig.for_model(family, **SMALL | fields)
    with pytest.raises(ModelError, match=part):
        check_cut(config, layers, "student.init.layers")
    assert layer_count(config) == 4


def sides(decoder_layers: int) -> dict[str, Any]:
    side = SMALL | {"sliding_window": 4}
    return {"encoder": side, "decoder": side | {"num_hidden_layers": decoder_layers}, "vocab_size": 50}


@pytest.mark.parametrize(("decoder_layers", "layers"), [(4, [1, 3]), (4, [3]), (3, [0, 2])])
def test_t5gemma_is_cut_on_both_sides(tmp_path: Path, decoder_layers: int, layers: list[int]) -> None:
    model, ids = tiny(AutoModelForSeq2SeqLM, "t5gemma", sides(decoder_layers)), torch.arange(3, 15)[None]
    config = deepcopy(model.config)
    stacks = [list(side.layers) for side in (model.get_encoder(), model.get_decoder())]
    check_cut(config, layers, "student.init.layers")
    cut(model, layers).save_pretrained(tmp_path)
    for side, before in zip((model.get_encoder(), model.get_decoder()), stacks, strict=True):
        assert list(side.layers) == [before[layer] for layer in layers]
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    both = [each(ids, decoder_input_ids=ids[:, :4]).logits for each in (model, loaded)]
    assert torch.equal(*both)
    planned = cut_config(config, layers)
    assert [side.num_hidden_layers for side in (planned.encoder, planned.decoder)] == [len(layers)] * 2


def test_t5gemmas_shallower_side_bounds_the_layers() -> None:
    config = AutoConfig.for_model("t5gemma", **sides(2))
    with pytest.raises(ModelError, match="has 4 layers in its encoder and 2 in its decoder, 0 to 1 in both"):
        check_cut(config, [0, 2], "student.init.layers")


def test_the_vision_tower_of_t5gemma_2_is_left_whole() -> None:
    side = SMALL | {"sliding_window": 4}
    encoder = {"text_config": side, "vision_config": VISION, "mm_tokens_per_image": 4}
    model = tiny(AutoModelForSeq2SeqLM, "t5gemma2", {"encoder": encoder, "decoder": side})
    cut(model, [3])
    towers = [part for name, part in model.named_modules() if name.endswith("vision_tower.encoder.layers")]
    assert [len(layers) for layers in towers] == [model.config.encoder.vision_config.num_hidden_layers] == [4]
    assert layer_counts(model.config) == [1, 1]
