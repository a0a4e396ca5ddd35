"""Tensors as the files of a checkpoint name them, which transformers may name and stack otherwise in memory."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from minidist.models.filling import whole_shape


def as_in_files(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of the model's checkpoint, experts one by one, as vLLM reads them; a tied head stays."""
    return revert_weight_conversion(model, dict(tensors))


def load_as_in_files(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Replace all weights of the model by tensors that are named as in the files of its checkpoint."""
    state = dict(tensors)
    if not model.state_dict().keys() <= state.keys():
        kind: Any = type(model)
        state = kind.from_pretrained(None, config=model.config, state_dict=state, dtype=model.dtype).state_dict()
    model.load_state_dict(state)


def names_in_files(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Every name that the files of a checkpoint may have for the tensors: converted, as in memory, or, as in some (GPT-2's),
    without the prefix of the base model."""
    plain = list(names)
    converted = list(as_in_files(model, {name: torch.empty(1, device="meta") for name in plain}))
    return [*converted, *plain, *(name.removeprefix(f"{model.base_model_prefix}.") for name in plain)]


def found_in_files(model: PreTrainedModel, names: Iterable[str], shapes: Mapping[str, Sequence[int]]) -> dict[str, str] | None:
    """The name in the files of a checkpoint, whose tensors have these `shapes`, of each tensor of the model.

    None where the files hold a tensor of the model otherwise: under a converted name, stacked, in another shape, or not at all.
    """
    state, found = model.state_dict(keep_vars=True), {}
    plain = list(names)
    if set(as_in_files(model, {name: torch.empty(1, device="meta") for name in plain})) != set(plain):
        return None
    tied: dict[int, str] = {}
    for name in plain:
        parameter = state.get(name, state.get(_adapted(name)))
        assert parameter is not None, f"{name} is a name of the model"
        options = (name, name.removeprefix(f"{model.base_model_prefix}."), tied.get(id(parameter), ""))
        known = [each for each in options if each in shapes]
        if not known or list(shapes[known[0]]) != list(whole_shape(parameter)):
            return None
        found[name] = tied.setdefault(id(parameter), known[0])
    return found


def _adapted(name: str) -> str:
    """PEFT's name of the weight or bias of an adapted layer."""
    layer, _, kind = name.rpartition(".")
    return f"{layer}.base_layer.{kind}"
