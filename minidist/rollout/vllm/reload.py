"""New weights in a process that holds a part of vLLM's model, where vLLM alone would refuse them, keep old ones, or be slow."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

from minidist.models.adapted import adapted_names, to_tensors
from minidist.models.by_layer import by_layer, layer_of
from minidist.types import Adaptation, Weights

_TIED_HEAD = "lm_head"

Named = Sequence[tuple[str, Any]]
"""Tensors with their names in a checkpoint."""


def reload(worker: Any, given: Weights | Named, *, on_gpu: bool) -> None:
    """Replace the weights of the worker's model by those `given`, named as in a checkpoint, a tied output head among them.

    On a CPU, a dense model that has taken the same names before takes them in place (`_in_place`); of a model that adapters
    change, only the decoder layers that have some. Raises ValueError for names that the model does not have.
    """
    model = worker.get_model()
    tensors = dict(_chosen(model, given))
    layers = by_layer(wanted_names(model, tensors))
    groups = ([(name, tensors[name]) for name in names] for names in layers.values())
    replace_weights(
        model, layers, groups, lambda named: worker.model_runner.reload_weights(weights_iterator=named), on_gpu=on_gpu
    )
    _BASES[model] = _base_of(given)


def replace_weights(
    model: Any,
    layers: dict[str, list[str]],
    groups: Iterable[Named],
    own_procedure: Callable[[Iterator[tuple[str, Any]]], None],
    *,
    on_gpu: bool,
) -> None:
    """Replace the weights of vLLM's model by tensors that come decoder layer by decoder layer, so that one layer's are enough.

    Args:
        model: takes the weights.
        layers: names of the tensors, layer by layer (`by_layer`).
        groups: the tensors of each layer with their names, in the order of `layers`.
        own_procedure: replaces all weights as vLLM does, with the calls that need more than the model.
        on_gpu: where the model computes; see `reload`.
    """
    _BASES[model] = None
    names = {layer: set(names) for layer, names in layers.items()}
    if names.items() <= _TAKEN.get(model, {}).items():
        _in_place(model, zip(layers, groups, strict=True))
        return
    own_procedure(chain.from_iterable(groups))
    if not on_gpu:
        _pack_experts(model)
        if _is_dense(model):
            _TAKEN[model] = names


def wanted_names(model: Any, names: Iterable[str]) -> list[str]:
    """The names without a tied head that the model reads through its embedding.

    Some models (Gemma's) do, and refuse the head; others (Llama's) keep the old one without it.
    """
    return list(names) if has_head(model) else [name for name in names if not name.endswith(f"{_TIED_HEAD}.weight")]


def has_head(model: Any) -> bool:
    """Whether the model has an output head of its own name."""
    return any(name.rpartition(".")[2] == _TIED_HEAD for name, _ in model.named_modules())


def _chosen(model: Any, given: Weights | Named) -> Named:
    """The tensors to load: of adapters on the base that the model holds already, those of the adapted decoder layers."""
    if not isinstance(given, Weights):
        return given
    if given.adaptation is None or _BASES.get(model) != _base_of(given) or model not in _TAKEN:
        return list(to_tensors(given))
    adapted = {layer_of(name) for name in adapted_names(given)}
    return list(to_tensors(given, lambda name: layer_of(name) in adapted))


def _base_of(given: Weights | Named) -> tuple[Adaptation, list[str]] | None:
    """The base of adapters that are published alone, and the weights that they change: all others are those of the base."""
    if not isinstance(given, Weights) or given.adaptation is None:
        return None
    return given.adaptation, adapted_names(given)


_BASES: WeakKeyDictionary[Any, tuple[Adaptation, list[str]] | None] = WeakKeyDictionary()
"""`_base_of` the weights that a model holds."""
_TAKEN: WeakKeyDictionary[Any, dict[str, set[str]]] = WeakKeyDictionary()
"""Names of the tensors, layer by layer, that vLLM's own procedure has taken: the models that `_in_place` serves."""


def _pack_experts(model: Any) -> None:
    """Bring new experts into the order in which the kernels of a CPU read them; vLLM 0.32 does so only when it starts."""
    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(layer)


def _is_dense(model: Any) -> bool:
    """Whether the model's weights are those of matrix products, embeddings and norms, and vLLM derives nothing else of them."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

    if ".transformers" in type(model).__module__:
        return False
    for layer in model.modules():
        if type(layer) is Attention:
            continue
        method = type(getattr(layer, "quant_method", None))
        if isinstance(layer, LinearBase):
            dense = method is UnquantizedLinearMethod and len(_removed(layer).shape) == 2
        elif isinstance(layer, VocabParallelEmbedding):
            dense = method is UnquantizedEmbeddingMethod
        else:
            dense = method is type(None) and not hasattr(layer, "process_weights_after_loading")
        if not dense:
            return False
    return True


def _in_place(model: Any, groups: Iterable[tuple[str, Named]]) -> None:
    """What vLLM does with the weights of a dense model when it starts, decoder layer by decoder layer.

    On a CPU the kernel of a matrix product has a packed copy of the weight, and the weight itself is gone. `reload_weights`
    makes every parameter anew, loads it twice, packs tied weights twice, and takes several times as long.
    """
    import torch
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    layers: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LinearBase | VocabParallelEmbedding):
            layers.setdefault(layer_of(name), []).append(module)
    for number, tensors in groups:
        linear = [each for each in layers.get(number, ()) if isinstance(each, LinearBase)]
        embeddings = [each for each in layers.get(number, ()) if not isinstance(each, LinearBase)]
        for layer in linear:
            layer.weight = _empty(layer)
        with torch.no_grad():
            model.load_weights(iter(_once(tensors, embeddings)))
        for layer in linear:
            layer.quant_method.process_weights_after_loading(layer)
            layer.update_param_tp_status()
        _pack_heads(embeddings)


def _removed(layer: Any) -> Any:
    """The weight that a matrix product had before it was packed, without data."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    return get_layerwise_info(layer).restore_metadata[0]["weight"]


def _empty(layer: Any) -> Any:
    """A weight of the matrix product that can be loaded, with the loader that it had when vLLM started."""
    from vllm.model_executor.model_loader.reload.layerwise import _get_original_loader
    from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor
    from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs

    weight: Any = materialize_meta_tensor(restore_layer_refs(_removed(layer), layer))
    # `reload_weights` leaves a loader that drops what it is given.
    weight.weight_loader = _get_original_loader(weight)
    return weight


def _once(tensors: Named, embeddings: Sequence[Any]) -> Named:
    """The tensors without a tied head that shares its weight with the embedding."""
    shared = len({id(each.weight) for each in embeddings}) < len(embeddings)
    return [(name, tensor) for name, tensor in tensors if not (shared and name.endswith(f"{_TIED_HEAD}.weight"))]


def _pack_heads(embeddings: Sequence[Any]) -> None:
    """Pack the weights that make logits: those of the output head, or of an embedding where the model has no head."""
    from torch.nn.functional import linear
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    headed = any(isinstance(each, ParallelLMHead) for each in embeddings)
    for layer in embeddings:
        if headed and not isinstance(layer, ParallelLMHead):
            layer.cpu_linear = linear  # it looks rows up only, and its packed copy would be an old one
        else:
            layer.quant_method.process_weights_after_loading(layer)
