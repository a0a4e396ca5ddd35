"""Rows of uneven length, and models run on micro-batches of them or on one row alone."""

import numpy as np
import torch
from transformers import PreTrainedModel

from minidist.data.batching import collate, pack
from minidist.models.forward import hidden_states
from minidist.types import Row
from tests.support.tiny import random_rollouts

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2"]


def uneven_rows(seed: int = 0) -> tuple[Row, ...]:
    return collate("rows", random_rollouts([(3, 4), (1, 9), (6, 1), (2, 2), (5, 8)], seed=seed)).rows


@torch.no_grad()
def states(model: PreTrainedModel, rows: tuple[Row, ...], padded: bool, budget: int = 60) -> dict[int, torch.Tensor]:
    """Hidden states at each row's loss tokens, from micro-batches."""
    found: dict[int, torch.Tensor] = {}
    for micro in pack(rows, budget=budget, padded=padded):
        parts = hidden_states(model, micro, padded=padded).split([len(rows[index].labels) for index in micro.rows])
        found |= dict(zip(micro.rows, parts, strict=True))
    return found


@torch.no_grad()
def alone(model: PreTrainedModel, row: Row) -> torch.Tensor:
    """Hidden states at a row's loss tokens, from the model run on that row alone."""
    ids = torch.tensor(row.tokens[None].astype(np.int64))
    return model.base_model(input_ids=ids).last_hidden_state[0, row.outputs]
