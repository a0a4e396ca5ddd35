"""A learner's training state on disk: tensors by name in safetensors files of bounded size.

They lie in the directory `training/`, since vLLM takes every safetensors file beside a model for a part of the model.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minidist.errors import RunDirectoryError

_FILE_BYTES = 4 << 30
_DIRECTORY = "training"
_STEPS = "optimizer_steps"


def save_state(path: Path, steps: int, state: Iterable[tuple[str, Mapping[str, Tensor]]], *, write: bool) -> None:
    """Write the tensors of each parameter after `steps` optimizer steps. All ranks read `state`, since each may hold a part of
    every tensor; one has `write` set."""
    writer = StateWriter(path, steps) if write else None
    for parameter, tensors in state:
        if writer is not None:
            writer.add(parameter, tensors)
    if writer is not None:
        writer.flush()


class StateWriter:
    """Collects tensors and writes training/00001.safetensors and so on, so that at most one file is held in memory."""

    def __init__(self, path: Path, steps: int) -> None:
        self._path = path / _DIRECTORY
        self._files = 0
        self._bytes = 0
        self._held: dict[str, Tensor] = {_STEPS: torch.tensor([steps])}
        self._path.mkdir(exist_ok=True)

    def add(self, parameter: str, tensors: Mapping[str, Tensor]) -> None:
        """`weight`, and the optimizer's moments by their names."""
        for name, tensor in tensors.items():
            self._held[f"{parameter}|{name}"] = tensor.detach().cpu().contiguous().clone()
            self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes >= _FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the collected tensors."""
        if self._held:
            self._files += 1
            save_file(self._held, self._path / f"{self._files:05d}.safetensors")
            self._held, self._bytes = {}, 0


class StateReader:
    """Reads the files of `StateWriter`, tensor by tensor. Raises RunDirectoryError if `path` holds none."""

    def __init__(self, path: Path) -> None:
        self._files: dict[str, Path] = {}
        for file in sorted((path / _DIRECTORY).glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                self._files |= dict.fromkeys(tensors.keys(), file)
        if _STEPS not in self._files:
            raise RunDirectoryError(
                f"{path} has no training state in {_DIRECTORY}/, so a run cannot resume from it; set run.overwrite=true to "
                "start again, or student.model to its path"
            )
        self.steps = int(self._read(_STEPS))

    def tensors(self, parameter: str) -> dict[str, Tensor]:
        """`weight` and moments of a parameter. Raises KeyError if it was not trained."""
        keys = [key for key in self._files if key.rpartition("|")[0] == parameter]
        if not keys:
            raise KeyError(parameter)
        return {key.rpartition("|")[2]: self._read(key) for key in keys}

    def _read(self, key: str) -> Tensor:
        with safe_open(self._files[key], framework="pt") as tensors:
            return tensors.get_tensor(key)
