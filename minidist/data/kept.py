"""Rollouts as JSON, for checkpoints: token ids, log-probabilities and versions; prompts by their row."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from minidist.types import Array, Finish, Prompt, Rollout, Writer


def to_row(rollout: Rollout) -> dict[str, Any]:
    """The rollout as JSON. float32 numbers keep every bit; NaN is null, which JSON has."""
    row: dict[str, Any] = {
        "prompt": rollout.prompt.row,
        "tokens": rollout.tokens.tolist(),
        "versions": rollout.versions.tolist(),
    }
    row |= {"finish": rollout.finish.value, "sample": rollout.sample, "text": rollout.text, "writer": rollout.writer.value}
    if rollout.logprobs is not None:
        row["logprobs"] = [None if math.isnan(value) else value for value in rollout.logprobs.tolist()]
    for name in ("coins", "labelled"):
        if (flags := getattr(rollout, name)) is not None:
            row[name] = flags.astype(int).tolist()
    return row


def from_row(row: Mapping[str, Any], prompts: Mapping[int, Prompt]) -> Rollout:
    """The rollout of a row that `to_row` made; `prompts` by their rows."""
    flags = {name: np.array(row[name], dtype=bool) for name in ("coins", "labelled") if name in row}
    return Rollout(
        prompt=prompts[row["prompt"]],
        tokens=np.array(row["tokens"], dtype=np.int32),
        logprobs=_floats(row["logprobs"]) if "logprobs" in row else None,
        versions=np.array(row["versions"], dtype=np.int32),
        finish=Finish(row["finish"]),
        sample=row["sample"],
        text=row["text"],
        writer=Writer(row["writer"]),
        **flags,
    )


def _floats(values: list[float | None]) -> Array:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float32)
