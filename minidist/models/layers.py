"""Models with some of another model's layers: students cut from their teachers."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from minidist.errors import ModelError

# Configuration fields that hold the number of layers, by what transformers' families call them.
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
# Fields that hold a value for each layer.
_LISTS = ("layer_types", "attention_layers", "no_rope_layers", "mlp_layer_types", "sliding_window_pattern_per_layer")


def layer_count(config: PretrainedConfig) -> int:
    """Layers of a model; of one with encoder and decoder, those of the encoder."""
    return int(config.get_text_config().num_hidden_layers)


def check_layers(config: PretrainedConfig, layers: Sequence[int], where: str) -> None:
    """Raise ModelError unless `layers` are rising numbers of layers that the model has, from 0."""
    count = layer_count(config)
    missing = [layer for layer in layers if not 0 <= layer < count]
    if missing:
        has = f"the model has {count} layers, numbers 0 to {count - 1}"
        raise ModelError(f"{where} names layer {missing[0]}, and {has}; name layers that it has")
    if not layers or any(right <= left for left, right in pairwise(layers)):
        raise ModelError(f"{where} is {list(layers)}; give one layer or more, each once, in rising order")


def cut(model: PreTrainedModel, layers: Sequence[int], where: str = "student.init.layers") -> PreTrainedModel:
    """Keep only the layers with these numbers, from 0, in place; of an encoder-decoder, in both. Returns the model.

    The other layers are removed from the configuration too, so that the model saves and loads as one of its own size. Raises
    ModelError for layers that the model does not have.
    """
    config: Any = model.config
    check_layers(config, layers, where)
    count = layer_count(config)
    stacks = list(_stacks(model, count))
    if not stacks:
        raise ModelError(f"{where}: {type(model).__name__} has no list of {count} layers to cut; set a smaller model")
    for parent, name in stacks:
        stack: nn.ModuleList = getattr(parent, name)
        kept = nn.ModuleList([stack[layer] for layer in layers])
        _keep_positions(stack[0], kept[0])
        _renumber(kept)
        setattr(parent, name, kept)
    cut_config(config, layers)
    for module in model.modules():  # some keep the number beside the configuration
        for field in ("num_hidden_layers", "n_layers", "num_layers"):
            if isinstance(vars(module).get(field), int) and vars(module)[field] == count:
                setattr(module, field, len(layers))
    return model


def cut_config(config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    """Reduce a configuration to some of its layers, in place. Returns it."""
    text: Any = config.get_text_config()
    count = layer_count(config)
    for name in _LISTS:
        values = getattr(text, name, None)
        if isinstance(values, list) and len(values) == count:
            setattr(text, name, [values[layer] for layer in layers])
    for name in _COUNTS:
        if vars(text).get(name) == count:
            setattr(text, name, len(layers))
    return config


def _stacks(module: nn.Module, count: int) -> Iterator[tuple[nn.Module, str]]:
    """Each list of `count` layers, as its parent and its name; lists within a layer are none."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) and len(child) == count and all(list(each.children()) for each in child):
            yield module, name
        else:
            yield from _stacks(child, count)


def _keep_positions(first: nn.Module, new_first: nn.Module) -> None:
    """Move the table of relative positions that T5's first layer holds for all layers to the layer that is now the first."""
    for name, module in first.named_modules():
        table = getattr(module, "relative_attention_bias", None)
        if isinstance(table, nn.Embedding):
            attention: Any = new_first.get_submodule(name)
            attention.relative_attention_bias, attention.has_relative_attention_bias = table, True


def _renumber(stack: nn.ModuleList) -> None:
    """Set each layer's number, by which it finds its keys and values in a cache."""
    for number, layer in enumerate(stack):
        for module in layer.modules():
            for field in ("layer_idx", "layer_id", "layer_number"):
                if isinstance(vars(module).get(field), int):
                    setattr(module, field, number)
