"""Tensors as the files of a checkpoint name them, which transformers may name and stack otherwise in memory."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion


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
