"""The shape of a model, read from its configuration alone."""

import pytest
from transformers import GPT2Config, LlamaConfig, Qwen3Config, T5Config

from minidist.config.models import LoraConfig
from minidist.errors import ModelError
from minidist.models.shape import read_shape, skeleton

LARGE = LlamaConfig(
    hidden_size=8192,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    intermediate_size=28672,
    vocab_size=128256,
)
SMALL = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=32
)


def test_llama_70b_has_its_published_shape() -> None:
    large = read_shape(LARGE)
    assert (large.family, large.parameters) == ("llama", 70_553_706_496)
    assert (large.layers, large.hidden, large.heads, large.kv_heads, large.head_size) == (80, 8192, 64, 8, 128)
    assert (large.intermediate, large.vocabulary, large.gated, large.head_norms) == (28672, 128256, True, False)


def test_gpt2_has_its_published_shape() -> None:
    gpt2 = read_shape(GPT2Config())
    assert (gpt2.parameters, gpt2.kv_heads, gpt2.intermediate, gpt2.gated) == (124_439_808, 12, 3072, False)


def test_a_tied_head_is_counted_once() -> None:
    tied, untied = (read_shape(LlamaConfig(**SMALL.to_dict() | {"tie_word_embeddings": tie})) for tie in (True, False))
    assert untied.parameters - tied.parameters == 32 * 64


def test_qwen3_normalises_its_heads() -> None:
    config = Qwen3Config(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96, vocab_size=32)
    assert read_shape(config).head_norms


def test_without_adapters_every_parameter_is_trained() -> None:
    shape = read_shape(SMALL)
    assert shape.trainable == shape.parameters == shape.checkpoint_parameters
    assert shape.adapted_layers == ()


def test_adapters_alone_are_trained() -> None:
    """Rank times inputs and outputs: q and o are 64 by 64, k and v 64 by 32, gate, up and down 64 by 96, in two layers."""
    shape = read_shape(SMALL, LoraConfig(rank=4))
    assert shape.trainable == 4 * 2 * (2 * 128 + 2 * 96 + 3 * 160)
    assert shape.parameters == read_shape(SMALL).parameters + shape.trainable
    assert shape.checkpoint_parameters == read_shape(SMALL).parameters


def test_adapted_layers_are_those_that_the_targets_name() -> None:
    shape = read_shape(SMALL, LoraConfig(rank=2, targets=["q_proj", "layers.1.self_attn.v_proj"]))
    assert [name.removeprefix("model.layers.") for name in shape.adapted_layers] == [
        "0.self_attn.q_proj",
        "1.self_attn.q_proj",
        "1.self_attn.v_proj",
    ]
    assert shape.trainable == 2 * (2 * 128 + 96)


def test_a_target_without_a_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="no_such_layer names no linear layer"):
        read_shape(SMALL, LoraConfig(targets=["no_such_layer"]))


def test_a_skeleton_holds_no_memory() -> None:
    assert all(parameter.is_meta for parameter in skeleton(LARGE).parameters())


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match="t5 is not a causal language model: "):
        skeleton(T5Config())


def test_the_shape_of_what_is_not_a_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match="is not a causal language model"):
        read_shape(T5Config())
