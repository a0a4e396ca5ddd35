"""Rollouts through JSON."""

import json
from typing import Any

import numpy as np
import pytest

from minidist.data.kept import from_row, to_row
from minidist.types import Finish, Prompt, Rollout, Writer

PROMPT = Prompt(7, np.array([1, 2]), "p")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": None, "writer": Writer.DATASET},
        {"logprobs": np.array([-0.1, np.nan, -1e-30], dtype=np.float32), "coins": np.array([False, True, False])},
        {"labelled": np.array([True, False, True]), "sample": 3, "text": "a\u2028b", "finish": Finish.LENGTH},
        {"writer": Writer.TEACHER},
    ],
    ids=str,
)
def test_a_rollout_survives_bit_by_bit(fields: dict[str, Any]) -> None:
    logprobs = np.log(np.array([0.1, 0.2, 0.3], dtype=np.float32))
    versions = np.array([4, 4, 5], dtype=np.int32)
    options = {"logprobs": logprobs, "versions": versions, "finish": Finish.STOP} | fields
    rollout = Rollout(PROMPT, np.array([3, 1, 4], dtype=np.int32), **options)
    found = from_row(json.loads(json.dumps(to_row(rollout), allow_nan=False)), {7: PROMPT})
    for name, value in vars(rollout).items():
        other = getattr(found, name)
        if isinstance(value, np.ndarray):
            assert value.dtype == other.dtype and np.array_equal(value, other, equal_nan=value.dtype == np.float32), name
        else:
            assert value is other or value == other, name
