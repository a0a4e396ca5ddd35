"""What the layers of a model compute for rows: hidden states and attention maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from minidist.models.classifiers import Predictor
from minidist.types import Array, LabelledRow


@dataclass(frozen=True)
class Internals:
    """Of each layer of a model, over the same rows.

    Args:
        hidden: state of each row's summary token (`Predictor.predict`) after the embeddings and after each layer, [B, D] each.
        attention: mean over heads of each row's attention map, of each layer: of B rows, [S, S] each, S the row's tokens.
    """

    hidden: list[Array]
    attention: list[list[Array]]


@torch.no_grad()
def internals(predictor: Predictor, rows: Sequence[LabelledRow]) -> Internals:
    """Hidden states and attention of rows, of an encoder where there are encoder and decoder; not of answer choices."""
    model, lengths = predictor.model, [len(row.tokens) for row in rows]
    parts = [
        part for part in model.modules() if isinstance(part, PreTrainedModel)
    ]  # T5's stacks have configurations of their own
    kernels = [part.config._attn_implementation for part in parts]
    hidden = [each.float().cpu().numpy() for each in predictor.predict(rows, hidden=True).hidden]
    try:
        for part in parts:
            part.set_attn_implementation("eager")  # fused kernels form no map
        output: Any = model(**predictor.inputs(rows), output_attentions=True)
    finally:
        for part, kernel in zip(parts, kernels, strict=True):
            part.set_attn_implementation(str(kernel))
    maps = output.get("encoder_attentions") or output.attentions
    means = [each.float().mean(1).cpu().numpy() for each in maps]
    return Internals(hidden, [[layer[row, :n, :n] for row, n in enumerate(lengths)] for layer in means])


def joined(parts: Sequence[Internals]) -> Internals:
    """The internals of several groups of rows as one."""
    hidden = [np.concatenate(layers) for layers in zip(*(part.hidden for part in parts), strict=True)]
    attention = [[row for part in layers for row in part] for layers in zip(*(part.attention for part in parts), strict=True)]
    return Internals(hidden, attention)
