"""A pair of `tests.support.large_process`, and what holds of it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minidist.models.hub import load_model
from minidist.models.tensor_files import read_tensor, slots_of
from tests.support.config import teacher_config
from tests.support.large_models import write_model
from tests.support.large_process import rollouts
from tests.support.tiny import hidden_scores


@dataclass(frozen=True)
class Measured:
    """The bytes of a model's weights; for each rank, of everything that it did, the highest memory above what it had before;
    and where the model and what the ranks wrote are."""

    model_bytes: int
    ranks: list[dict[str, int]]
    path: Path


def run_pair(path: Path, **fields: Any) -> Measured:
    """Write a model of these fields under `path`, and let two ranks work with it."""
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}
    write_model(path / "first" / "model", hidden_size=64, intermediate_size=64, num_hidden_layers=1, **heads)
    size = write_model(path / "model", **heads, **fields)
    # Small blocks too go back to the system when they are freed: what was freed would count as held.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.large_process"]
    arguments = [f"file://{path / 'meeting'}"]
    arguments += [str(each) for root in (path / "first", path) for each in (root / "model", root)]
    ranks = [subprocess.Popen([*command, str(rank), "2", *arguments], env=environment) for rank in range(2)]
    try:
        assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    return Measured(size, [json.loads((path / f"{rank}.json").read_text()) for rank in range(2)], path)


def check(found: Measured, *, loaded: float, student: float) -> None:
    """The parts of a model are those of the whole one, and take as little memory as they may.

    Args:
        found: by `run_pair`.
        loaded: highest memory of a frozen teacher that is loaded and checked, as a multiple of the model.
        student: the same of a learner in float32, which also holds its part of the copy that the optimizer steps.
    """
    for taken in found.ranks:
        shares = {name: size / found.model_bytes for name, size in taken.items()}
        assert shares["teacher"] < loaded, shares
        assert shares["learner"] < student, shares
        assert max(shares["save"], shares["save, trained"]) < 0.2, shares  # a few tensors, whatever the model
        assert shares["save_state"] < 0.1, shares
        assert shares["resume"] < 1.2, shares  # the moments, made anew
    whole = load_model(teacher_config(model=str(found.path / "model")), "teacher.model")
    wanted = np.concatenate([each.hidden for each in hidden_scores(whole, rollouts())])  # type: ignore[arg-type]
    for rank in range(2):
        np.testing.assert_allclose(np.load(found.path / f"{rank}.npy"), wanted, atol=1e-4)
    files = [slots_of(found.path / name, "test") for name in ("model", "before", "after")]
    assert files[0].keys() == files[1].keys() == files[2].keys()
    for name, slot in files[0].items():
        assert torch.equal(read_tensor(files[1][name]), read_tensor(slot)), name
    assert not torch.equal(*(read_tensor(each["model.norm.weight"]) for each in files[1:]))
