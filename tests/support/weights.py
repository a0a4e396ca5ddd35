"""Weights of a model for checks that read no tensor."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_weights(path: Path) -> None:
    """A whole file of weights, of no model."""
    save_file({"nothing": np.zeros(1, dtype=np.float32)}, path / "model.safetensors")
