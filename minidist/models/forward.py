"""Hidden states of flat micro-batches."""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.import_utils import is_flash_attn_2_available

from minidist.data.batching import MicroBatch, micro_batch
from minidist.errors import ModelError
from minidist.models.families import PACKED
from minidist.models.segments import NAME, share_prompts, use_segments
from minidist.run import timeline
from minidist.run.tracking import log
from minidist.types import Array, Row, members_of


def padded_layout(layout: str, model: PreTrainedModel) -> bool:
    """Whether micro-batches are computed as rectangles (`buckets`) rather than as one packed row; lets a packed model attend by
    a kernel that takes the lengths of the rows.

    `auto` packs the rows of a family that is proved to keep them apart, where the device has such a kernel: transformers' own
    attention to a packed row compares all its tokens with one another. The loaded model is tried, and computes rectangles where
    packed rows are wrong. Raises ModelError where `packed` is asked for and wrong, or where rectangles are.
    """
    auto = layout == "auto"
    packed = layout == "packed" or (auto and model.config.model_type in PACKED)
    if packed:
        kernel = use_segments(model) if model.device.type == "cpu" else use_lengths(model)
        packed = kernel or not auto
    if (difference := _difference(model, padded=True)) is not None:
        raise ModelError(f"{type(model).__name__} does not compute rows side by side as rows alone: {difference}")
    if packed and (difference := _difference(model, padded=False)) is not None:
        sentence = f"packed rows of {type(model).__name__} are not computed as rows alone are ({difference})"
        if not auto:
            raise ModelError(f"learner.layout: {sentence}; set learner.layout=buckets")
        log.warning("%s: rows of like length are computed side by side", sentence)
        packed = False
    return not packed


def use_lengths(model: PreTrainedModel) -> bool:
    """Let the model attend to a packed row by flash-attention, which takes the lengths of its rows (Dao, arXiv:2307.08691).
    False where it is not installed, the weights have 32 bits, or the model's attention is not torch's."""
    kernel = model.config._attn_implementation or ""
    if "flash" in kernel:
        return True
    if kernel != "sdpa" or model.dtype.itemsize != 2 or not is_flash_attn_2_available() or not model._supports_flash_attn:
        return False
    if torch.are_deterministic_algorithms_enabled():
        os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # transformers reads it at every call
    model.set_attn_implementation("flash_attention_2")
    return True


@torch.no_grad()
def _difference(model: PreTrainedModel, *, padded: bool) -> str | None:
    """By how much the hidden states of three rows together differ from those of the rows alone; None if by rounding."""
    texts = ([0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 3, 2], [3, 3, 2, 2, 1, 1, 0])
    rows = [Row(np.array(text), np.arange(3, len(text)), np.zeros(len(text) - 3, dtype=np.int64)) for text in texts]
    alone_LD = torch.cat([hidden_states(model, micro_batch([row], [0]), padded=True) for row in rows]).float()
    together_LD = hidden_states(model, micro_batch(rows, range(len(rows))), padded=padded).float()
    difference = float((together_LD - alone_LD).abs().max())
    close = difference <= 0.02 * float(alone_LD.abs().max())
    return None if close else f"their hidden states differ by {difference:.3g}"


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
    if not padded and prompt_PD is None and model.config._attn_implementation == NAME:
        return _by_segments(model, micro)
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
    _count(hidden_BSD, micro, micro.positions, prompted=prompt_PD is not None)
    return hidden_BSD.flatten(0, 1)[slots_N[outputs_L]]


def _by_segments(model: PreTrainedModel, micro: MicroBatch) -> Tensor:
    """`hidden_states` of a packed row on a device without a kernel for it; rows that begin with the same prompt share it."""
    segments, read, place_N = share_prompts(micro)
    ids_N, positions_N = (torch.from_numpy(each[read]) for each in (micro.tokens, micro.positions))
    options: dict[str, Any] = {"attention_mask": segments.marker(), "position_ids": positions_N[None], "use_cache": False}
    hidden_BSD = model.base_model(input_ids=ids_N[None], **options).last_hidden_state
    _count(hidden_BSD, micro, micro.positions[read], prompted=False)
    return hidden_BSD[0].index_select(0, torch.from_numpy(place_N[micro.outputs]))


def _count(hidden_BSD: Tensor, micro: MicroBatch, positions: Array, *, prompted: bool) -> None:
    """Account for a pass over tokens at these positions of their rows. `prompted`: of a teacher that learns its prompt."""
    kind = ("prompted_" if prompted else "") + ("backward" if hidden_BSD.requires_grad else "forward")
    work = {"tokens": len(positions), "pairs": int(positions.sum()) + len(positions), "heads": len(micro.outputs)}
    heads = sum(member.tokens for scores in micro.scores for member in members_of(scores) if member.hidden is not None)
    timeline.count(computed=hidden_BSD.shape[:2].numel(), teacher_heads=heads)
    timeline.count(**{f"{kind}_{name}": amount for name, amount in work.items()})


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
