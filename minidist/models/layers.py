"""Models with some of another model's layers: students cut from their teachers."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import chain, pairwise
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from minidist.errors import ModelError
from minidist.models.families import is_wrapped
from minidist.models.files import refused

# Configuration fields that hold the number of layers, by what transformers' families call them.
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
# Fields that hold a value for each layer, and fields that list numbers of layers.
_LISTS = ("layer_types", "attention_layers", "no_rope_layers", "mlp_layer_types", "sliding_window_pattern_per_layer")
_NUMBERS = ("mlp_only_layers", "moe_layers", "attn_layer_indices")


def layer_count(config: PretrainedConfig) -> int:
    """Layers of a model; of one with encoder and decoder, those of the encoder."""
    return int(_texts(config)[0].num_hidden_layers)


def _texts(config: PretrainedConfig) -> list[Any]:
    """Configurations of a model's language: of its only stack or of both, or, in T5Gemma, of its encoder and its decoder."""
    sides = [getattr(config, side, None) for side in ("encoder", "decoder")]
    found = [side.get_text_config() for side in sides if isinstance(side, PretrainedConfig)]
    return found if config.is_encoder_decoder and len(found) == len(sides) else [config.get_text_config()]


def layer_counts(config: PretrainedConfig) -> list[int]:
    """Layers of each stack of a model: of its encoder and its decoder, or of the only one."""
    texts = _texts(config)
    counts = [int(text.num_hidden_layers) for text in texts]
    if config.is_encoder_decoder and len(texts) == 1:
        named = (getattr(texts[0], name, None) for name in ("num_decoder_layers", "decoder_layers"))
        counts.append(next((count for count in named if isinstance(count, int)), counts[0]))
    return counts


def check_layers(config: PretrainedConfig, layers: Sequence[int], where: str) -> None:
    """Raise ModelError unless `layers` are rising numbers of layers that the model has, from 0, in every stack."""
    counts = layer_counts(config)
    missing = [layer for layer in layers if not 0 <= layer < min(counts)]
    if missing:
        has = f"the model has {counts[0]} layers, numbers 0 to {counts[0] - 1}"
        if len(set(counts)) > 1:
            sides = f"{counts[0]} layers in its encoder and {counts[1]} in its decoder"
            has = f"the model has {sides}, 0 to {min(counts) - 1} in both"
        raise ModelError(f"{where} names layer {missing[0]}, and {has}; name layers that it has")
    if not layers or any(right <= left for left, right in pairwise(layers)):
        raise ModelError(f"{where} is {list(layers)}; give one layer or more, each once, in rising order")


def check_cut(config: PretrainedConfig, layers: Sequence[int], where: str, *, trust_remote_code: bool = False) -> None:
    """Raise ModelError where `cut` would refuse a model with this configuration; found on a skeleton without weights."""
    check_layers(config, layers, where)
    with torch.device("meta"):
        model = AutoModel.from_config(deepcopy(config), trust_remote_code=trust_remote_code)
    cut(model, layers, where)


def cut(model: PreTrainedModel, layers: Sequence[int], where: str = "student.init.layers") -> PreTrainedModel:
    """Keep only the layers with these numbers, from 0, in place; of an encoder-decoder, in both. Returns the model.

    The other layers are removed from the configuration too, so that the model saves and loads as one of its size. Of a model
    that also reads images, the language model is cut. Raises ModelError for layers that the model does not have, and, with the
    model already cut, for those that its family's configuration cannot describe.
    """
    check_layers(model.config, layers, where)
    for text in _texts(model.config):
        _check_kinds(text, layers, where)
    parts = list(zip(_parts(model), layer_counts(model.config), strict=True))
    texts = {type(text) for text in _texts(model.config)}
    stacks = [list(_stacks(part, count, texts)) for part, count in parts]
    if not all(stacks):
        raise ModelError(f"{where}: {type(model).__name__} has no list of {parts[0][1]} layers to cut; set a smaller model")
    for parent, name in chain.from_iterable(stacks):
        _check_apart(getattr(parent, name), f"{where}: layers of a {model.config.model_type}")
    for parent, name in chain.from_iterable(stacks):
        stack: nn.ModuleList = getattr(parent, name)
        kept = nn.ModuleList([stack[layer] for layer in layers])
        _keep_positions(stack[0], kept[0])
        _renumber(kept)
        setattr(parent, name, kept)
    _cut_configs(model, layers)
    for part, count in parts:
        _recount(part, count, len(layers))
    _check_describes(model, layers, where)
    return model


def cut_config(config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    """Reduce a configuration to some of its layers, in place. Returns it."""
    counts = layer_counts(config)
    for text in _texts(config):
        _cut_text(text, layers, counts)
    return config


def _cut_text(text: Any, layers: Sequence[int], counts: Sequence[int]) -> None:
    """Reduce the configuration of one stack, or of both, of so many layers, in place."""
    count = int(text.num_hidden_layers)
    _cut_experts(text, layers, count)
    for name in _LISTS:
        values = getattr(text, name, None)
        computed = isinstance(getattr(type(text), text.attribute_map.get(name, name), None), property)
        if isinstance(values, list) and len(values) == count and not computed:
            setattr(text, name, [values[layer] for layer in layers])
    for name in _COUNTS:
        if vars(text).get(name) in counts:
            setattr(text, name, len(layers))


def _check_kinds(text: Any, layers: Sequence[int], where: str) -> None:
    """Raise ModelError for layers that would not be the same layers, or make no model, alone."""
    first = f"keep the first layers, 0 to {len(layers) - 1}, or set a smaller model"
    if getattr(text, "scale_attn_by_inverse_layer_idx", False) and list(layers) != list(range(len(layers))):
        scaled = f"{where}: a {text.model_type} with scale_attn_by_inverse_layer_idx divides attention by the layer's number"
        raise ModelError(f"{scaled}, and {list(layers)} alone would have other numbers; {first}")
    tables = [name for name in ("hidden_size_per_layer_input", "num_kv_shared_layers") if getattr(text, name, None)]
    if tables:
        shared = f"{where}: layers of a {text.model_type} share tables of embeddings, or keys and values ({', '.join(tables)})"
        raise ModelError(f"{shared}, and cannot be cut; set a smaller model")
    kinds = getattr(text, "layer_types", None) or []
    attention = [number for number, kind in enumerate(kinds) if attends(kind)]
    if attention and not set(attention) & set(layers):
        has = f"{where} is {list(layers)}, and layers with attention of the {text.model_type} are {attention}"
        raise ModelError(f"{has}, without any of which it does not run; keep one of them")


def _check_apart(stack: nn.ModuleList, layers: str) -> None:
    """Raise ModelError where layers share weights, as those of Zamba do. layers: beginning of the sentence."""
    weights = [id(weight) for layer in stack for weight in layer.parameters()]
    if len(set(weights)) < len(weights):
        raise ModelError(f"{layers} share weights, and cannot be cut; set a smaller model")


def attends(kind: str) -> bool:
    """Whether a kind of layer has softmax attention, over all tokens or over a window."""
    return kind == "hybrid" or ("attention" in kind and kind != "linear_attention")


def _cut_experts(text: Any, layers: Sequence[int], count: int) -> None:
    """Keep each layer's kind, dense or with experts, where a configuration tells them by their numbers."""
    if isinstance(first := getattr(text, "first_k_dense_replace", None), int):  # DeepSeek: the first ones are dense
        text.first_k_dense_replace = sum(layer < first for layer in layers)
    step = getattr(text, "decoder_sparse_step", None)
    if isinstance(step, int) and step > 1:  # Qwen: every so many layers has experts
        dense = {layer for layer in range(count) if (layer + 1) % step}
        text.mlp_only_layers, text.decoder_sparse_step = sorted(dense.union(text.mlp_only_layers or ())), 1
    for name in _NUMBERS:
        if isinstance(numbers := getattr(text, name, None), list):
            setattr(text, name, [new for new, layer in enumerate(layers) if layer in numbers])


def _parts(model: PreTrainedModel) -> list[nn.Module]:
    """The parts of a model whose layers are cut, as `layer_counts` counts them."""
    whole: Any = model
    if model.config.is_encoder_decoder:
        return [whole.get_encoder(), whole.get_decoder()]
    return [whole.get_decoder() if is_wrapped(model.config) else model]


def _stacks(module: nn.Module, count: int, texts: set[type]) -> Iterator[tuple[nn.Module, str]]:
    """Each list of `count` layers, as its parent and its name; lists within a layer are none, nor those of modules whose
    configurations are not among `texts`, which read images."""
    for name, child in module.named_children():
        config = getattr(child, "config", None)
        if isinstance(config, PretrainedConfig) and type(config.get_text_config()) not in texts:
            continue
        if isinstance(child, nn.ModuleList) and len(child) == count and all(list(each.children()) for each in child):
            yield module, name
        else:
            yield from _stacks(child, count, texts)


def _cut_configs(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Cut the model's configuration, and the copies of it that encoder and decoder may hold."""
    counts, texts = layer_counts(model.config), _texts(model.config)
    held = [getattr(module, "config", None) for part in _parts(model) for module in part.modules()]
    copies = [config.get_text_config() for config in held if isinstance(config, PretrainedConfig)]
    kinds = {type(text) for text in texts}
    for text in {id(text): text for text in (*texts, *copies) if type(text) in kinds}.values():
        _cut_text(text, layers, counts)


def _recount(part: nn.Module, before: int, after: int) -> None:
    """Set the number of layers in modules that keep it beside the configuration."""
    for module in part.modules():
        for field in ("num_hidden_layers", "n_layers", "num_layers"):
            if isinstance(vars(module).get(field), int) and vars(module)[field] == before:
                setattr(module, field, after)


def _check_describes(model: PreTrainedModel, layers: Sequence[int], where: str) -> None:
    """Raise ModelError unless the configuration describes the model's weights, by which alone it is loaded again."""
    with refused(f"{where}: {list(layers)} alone make no {model.config.model_type}"):
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):
            described = type(model)._from_config(config).state_dict()
    found = model.state_dict()
    shapes = [{name: each.shape for name, each in states.items()} for states in (found, described)]
    if shapes[0] != shapes[1]:
        wrong = min(name for name in {**found, **described} if shapes[0].get(name) != shapes[1].get(name))
        kept = f"{where}: layers of a {model.config.model_type} differ by their number, and its configuration cannot describe"
        first = f"keep the first layers, 0 to {len(layers) - 1}, or " if list(layers) != list(range(len(layers))) else ""
        raise ModelError(f"{kept} {list(layers)} alone ({wrong} would be lost); {first}set a smaller model")


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
