"""Weights from the files of a checkpoint into a model, of which this process may hold a part.

A parameter that DeepSpeed has partitioned is cut, flat, into as many equal parts as there are ranks. Each rank reads the bytes
of its own parts alone; no rank ever holds the whole model.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from minidist.errors import ModelError
from minidist.models.tensor_files import Slot, read_elements, read_tensor, slots_of
from minidist.run.tracking import log


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter, also of one that DeepSpeed has partitioned, which is empty."""
    return getattr(parameter, "ds_shape", parameter.shape)


def own_range(parameter: Any) -> tuple[int, int]:
    """First and last element, flat, of this rank's part of a partitioned parameter; empty where the other ranks have all."""
    count = parameter.ds_tensor.ds_numel
    start = min(parameter.ds_zero_partition_rank * count, parameter.ds_numel)
    return start, min(start + count, parameter.ds_numel)


@torch.no_grad()
def set_own_part(parameter: Any, own: Tensor) -> None:
    """Replace the elements of a partitioned parameter that this rank holds."""
    if parameter.ds_status.name == "AVAILABLE":  # a small one, which DeepSpeed keeps gathered: that copy ends
        parameter.partition()
    parameter.ds_tensor[: own.numel()].copy_(own)
    parameter.ds_tensor[own.numel() :].zero_()


@torch.no_grad()
def fill(model: PreTrainedModel, path: Path, where: str, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Set every tensor of the model, whole or partitioned, from the files of a checkpoint, and tie what the files have once.

    The names are those that transformers finds in the files. What its families store otherwise than they compute with (experts
    one by one) is converted tensor by tensor. Raises ModelError for a parameter that the files do not have, or in another
    shape.

    tensors: of the model by their names without adapters; None: its state.
    """
    files, state = slots_of(path, where), dict(model.state_dict(keep_vars=True)) if tensors is None else dict(tensors)
    sources = _sources(model, files, state)
    if tensors is None:
        _tie(model, {name: files[source] for name, source in sources.plain.items()}, set(state) - sources.names)
        state = dict(model.state_dict(keep_vars=True))
    filled = set()
    for name, value in sources.read(model, files):
        if name in state:
            _set(state[name], value, f"{where}: {path} has {name} in shape")
            filled.add(id(state[name]))
    missing = [name for name, each in state.items() if isinstance(each, torch.nn.Parameter) and id(each) not in filled]
    if missing:
        raise ModelError(f"{where}: {path} has no weights of {missing[0]}, which {type(model).__name__} needs")


@dataclass(frozen=True)
class _Sources:
    """Where the files of a checkpoint have the tensors of a model: under one name, or `converted`, from several by a converter
    of transformers."""

    plain: dict[str, str]
    converted: dict[str, tuple[WeightConverter, list[tuple[str, str]]]]

    @property
    def names(self) -> set[str]:
        return set(self.plain) | {name for name, _ in self.converted.items()}

    def read(self, model: PreTrainedModel, files: Mapping[str, Slot]) -> Iterator[tuple[str, Slot | Tensor]]:
        """Each tensor of the model that the files have: where it lies, or, where it is converted, itself."""
        for name, source in self.plain.items():
            yield name, files[source]
        for name, (converter, parts) in self.converted.items():
            mapping = deepcopy(converter)
            for pattern, source in parts:
                mapping.add_tensor(name, source, pattern, read_tensor(files[source]))  # type: ignore[arg-type]
            made: dict[str, Any] = mapping.convert(name, model=model, config=model.config)
            for target, value in made.items():
                yield target, value[0] if isinstance(value, list) else value


def _sources(model: Any, files: Mapping[str, Slot], state: Mapping[str, Tensor]) -> _Sources:
    """As transformers finds them when it loads a model; the model remembers the conversions for when it is written."""
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    found, prefix = _Sources({}, {}), model.base_model_prefix
    names: dict[str, Any] = dict(state)
    for source in sorted(files, key=dot_natural_key):
        name, pattern = rename_source_key(source, renamings, converters, prefix, names)
        if name not in state and source in state:
            name, pattern = rename_source_key(source, [], [], prefix, names)
        if name in state and pattern is None:
            found.plain[name] = source
        elif name in state and pattern is not None:
            found.converted.setdefault(name, (by_pattern[pattern], []))[1].append((pattern, source))
    model._weight_conversions = [each for each in mapping if each.was_used()]
    return found


def _tie(model: Any, found: Mapping[str, Slot], missing: set[str]) -> None:
    """Tie what the configuration ties, unless the files have both tensors and they differ."""
    for target, source in list(model.all_tied_weights_keys.items()):
        if target in found and source in found and not _equal(found[target], found[source]):
            log.warning("the files have other weights for %s than for %s: they are not tied", target, source)
            del model.all_tied_weights_keys[target]
    model.tie_weights(missing_keys=missing, recompute_mapping=False)


def _equal(left: Slot, right: Slot, step: int = 1 << 24) -> bool:
    if left == right:
        return True
    starts = range(0, left.shape.numel(), step)
    parts = ([read_elements(each, at, min(at + step, each.shape.numel())) for each in (left, right)] for at in starts)
    return left.shape == right.shape and all(torch.equal(*pair) for pair in parts)


def _set(tensor: Any, value: Slot | Tensor, what: str) -> None:
    """This process's part of the tensor, from all of it."""
    if list(value.shape) != list(whole_shape(tensor)):
        raise ModelError(f"{what} {list(value.shape)}; expected {list(whole_shape(tensor))}: copy the model again")
    if hasattr(tensor, "ds_tensor"):
        start, stop = own_range(tensor)
        set_own_part(tensor, read_elements(value, start, stop) if isinstance(value, Slot) else value.flatten()[start:stop])
    else:
        tensor.data.copy_(read_tensor(value) if isinstance(value, Slot) else value)
