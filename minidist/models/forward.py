"""Hidden states of flat micro-batches."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from minidist.data.batching import MicroBatch
from minidist.errors import ModelError


def padded_layout(layout: str, device: torch.device) -> bool:
    """Whether micro-batches are computed as rectangles (`buckets`) rather than as one packed row."""
    return layout == "buckets" or (layout == "auto" and device.type == "cpu")


def hidden_states(model: PreTrainedModel, micro: MicroBatch, *, padded: bool, prompt_PD: Tensor | None = None) -> Tensor:
    """Hidden states [L, D] before the output head, at the L loss tokens of a flat micro-batch.

    Rows do not see one another: in a rectangle each has its own line, and causal attention hides the padding on its
    right; in a packed row the positions, which start again with each row, part them. `prompt_PD`: embeddings of P virtual
    tokens that every row begins with; its own tokens come P positions later.
    """
    if prompt_PD is not None:
        micro = _lengthened(micro, len(prompt_PD))
    device = next(model.parameters()).device
    tokens, positions = torch.as_tensor(micro.tokens, device=device), torch.as_tensor(micro.positions, device=device)
    sequence, outputs = torch.as_tensor(micro.sequence, device=device), torch.as_tensor(micro.outputs, device=device)
    if padded:
        rows, longest = len(micro.rows), int(micro.positions.max()) + 1
        places = sequence * longest + positions
        ids = torch.zeros(rows * longest, dtype=torch.long, device=device).index_put((places,), tokens).view(rows, longest)
        # No mask: with causal attention a token never looks at the padding behind it, and the kernel stays the fast one.
        text = {"input_ids": ids} if prompt_PD is None else _behind(prompt_PD, model, ids, places[positions < len(prompt_PD)])
        hidden = model.base_model(**text, use_cache=False).last_hidden_state
        return hidden.reshape(rows * longest, -1)[places[outputs]]
    ids = tokens[None]
    text = (
        {"input_ids": ids}
        if prompt_PD is None
        else _behind(prompt_PD, model, ids, (positions < len(prompt_PD)).nonzero()[:, 0])
    )
    # Without a mask transformers reads the rows' borders off the positions, and keeps each layer's own window.
    hidden = model.base_model(**text, position_ids=positions[None], use_cache=False).last_hidden_state
    return hidden[0, outputs]


def _lengthened(micro: MicroBatch, count: int) -> MicroBatch:
    """The micro-batch with `count` tokens before each row. Their ids say nothing; outputs are where they were in their rows."""
    rows = len(micro.rows)
    starts = np.repeat(np.flatnonzero(micro.positions == 0), count)
    return replace(
        micro,
        tokens=np.insert(micro.tokens, starts, 0),
        positions=np.insert(micro.positions + count, starts, np.tile(np.arange(count), rows)),
        sequence=np.insert(micro.sequence, starts, np.repeat(np.arange(rows), count)),
        outputs=micro.outputs + count * (micro.sequence[micro.outputs] + 1),
    )


def _behind(prompt_PD: Tensor, model: PreTrainedModel, ids: Tensor, places: Tensor) -> dict[str, Tensor]:
    """The model's input: embeddings of `ids` [B, S], and at the flat `places`, row after row, those of the prompt."""
    embedding: Any = model.get_input_embeddings()
    table = embedding(ids)
    prompts = prompt_PD.to(table.dtype).repeat(len(places) // max(1, len(prompt_PD)), 1)
    return {"inputs_embeds": table.flatten(0, 1).index_put((places,), prompts).view_as(table)}


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass, and compute the layer again there.

    transformers does so only in training mode. The layers alone are put into it, not what is in them: dropout stays off.
    """
    if not model.supports_gradient_checkpointing:
        raise ModelError(f"{type(model).__name__} has no activation checkpointing; set learner.activation_checkpointing=false")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
