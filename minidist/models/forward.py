"""Hidden states of flat micro-batches."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from minidist.data.batching import MicroBatch
from minidist.errors import ModelError
from minidist.models.families import PACKED


def padded_layout(layout: str, model: PreTrainedModel) -> bool:
    """Whether micro-batches are computed as rectangles (`buckets`) rather than as one packed row.

    Raises ModelError where they would be packed, and the model, as it is on this device, lets packed rows see one another.
    """
    if layout == "auto":
        layout = "buckets" if model.device.type == "cpu" or model.config.model_type not in PACKED else "packed"
    if layout == "packed":
        _check_packing(model)
    return layout == "buckets"


@torch.no_grad()
def _check_packing(model: PreTrainedModel) -> None:
    """Raise ModelError if the hidden states of a packed row depend on the row before it."""
    positions = np.tile(np.arange(8), 2)
    row = MicroBatch(positions % 4, positions, np.repeat([0, 1], 8), np.arange(8, 16), np.zeros(8, dtype=np.int64), (0, 1))
    other = replace(row, tokens=np.where(row.sequence == 0, 3 - row.tokens, row.tokens))
    before_LD, after_LD = (hidden_states(model, each, padded=False).float() for each in (row, other))
    difference = float((before_LD - after_LD).abs().max())
    if difference > 0.02 * float(before_LD.abs().max()):
        raise ModelError(
            f"learner.layout: packed rows of {type(model).__name__} see one another (hidden states move by {difference:.3g}); "
            "set learner.layout=buckets"
        )


def hidden_states(model: PreTrainedModel, micro: MicroBatch, *, padded: bool, prompt_PD: Tensor | None = None) -> Tensor:
    """Hidden states [L, D] before the output head, at the L loss tokens of a flat micro-batch.

    Rows do not see one another: in a rectangle [B, S] each has a line to itself, and causal attention hides the padding on its
    right; in a packed row the positions, which start again with each row, separate them. `prompt_PD`: embeddings of P virtual
    tokens that every row begins with; the row's tokens follow P positions later.
    """
    if prompt_PD is not None:
        micro = _with_virtual_tokens(micro, len(prompt_PD))
    device = next(model.parameters()).device
    tokens_N, positions_N, row_N, outputs_L = (
        torch.as_tensor(array, device=device) for array in (micro.tokens, micro.positions, micro.sequence, micro.outputs)
    )
    options: dict[str, Any] = {"use_cache": False}
    if padded:
        rows, longest = len(micro.rows), int(micro.positions.max()) + 1
        slots_N = row_N * longest + positions_N
        empty = torch.zeros(rows * longest, dtype=torch.long, device=device)
        ids_BS = empty.index_put((slots_N,), tokens_N).view(rows, longest)
        # No mask: with causal attention a token never looks at the padding behind it, and the kernel stays the fast one.
    else:
        slots_N, ids_BS = torch.arange(len(tokens_N), device=device), tokens_N[None]
        # Without a mask transformers finds the rows' borders in the positions, and keeps each layer's own window.
        options["position_ids"] = positions_N[None]
    if prompt_PD is None:
        options["input_ids"] = ids_BS
    else:
        options["inputs_embeds"] = _embeddings(model, ids_BS, prompt_PD, slots_N[positions_N < len(prompt_PD)])
    hidden_BSD = model.base_model(**options).last_hidden_state
    return hidden_BSD.flatten(0, 1)[slots_N[outputs_L]]


def _with_virtual_tokens(micro: MicroBatch, count: int) -> MicroBatch:
    """The micro-batch with `count` tokens of id 0 before each row; their embeddings are set later."""
    rows = len(micro.rows)
    starts = np.repeat(np.flatnonzero(micro.positions == 0), count)
    return replace(
        micro,
        tokens=np.insert(micro.tokens, starts, 0),
        positions=np.insert(micro.positions + count, starts, np.tile(np.arange(count), rows)),
        sequence=np.insert(micro.sequence, starts, np.repeat(np.arange(rows), count)),
        outputs=micro.outputs + count * (micro.sequence[micro.outputs] + 1),
    )


def _embeddings(model: PreTrainedModel, ids_BS: Tensor, prompt_PD: Tensor, slots: Tensor) -> Tensor:
    """Embeddings [B, S, D] of the ids, with the prompt's, row after row, in the flat `slots`."""
    embedding: Any = model.get_input_embeddings()
    table_BSD = embedding(ids_BS)
    prompts = prompt_PD.to(table_BSD.dtype).repeat(len(slots) // max(1, len(prompt_PD)), 1)
    return table_BSD.flatten(0, 1).index_put((slots,), prompts).view_as(table_BSD)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass, which computes the layer again.

    transformers does so only in training mode. Only the layers are put into that mode, not the modules inside: dropout stays
    off. Raises ModelError for a model that does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise ModelError(
            f"learner.activation_checkpointing: transformers does not support it for {type(model).__name__}; set it to false"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
