"""A learner's training state on disk: tensors by name in safetensors files of bounded size.

They lie in a directory of their own, `training/`: vLLM takes every safetensors file beside a model for a part of it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minidist.errors import RunDirectoryError

_FILE_BYTES = 4 << 30
_DIRECTORY = "training"
_STEPS = "optimizer_steps"


class StateWriter:
    """Collects tensors and writes training/00001.safetensors and so on, so that at most one file is held in memory."""

    def __init__(self, path: Path, steps: int) -> None:
        self._path, self._files, self._bytes = path / _DIRECTORY, 0, 0
        self._path.mkdir(exist_ok=True)
        self._held: dict[str, Tensor] = {_STEPS: torch.tensor([steps])}

    def add(self, parameter: str, tensors: Mapping[str, Tensor]) -> None:
        """`weight`, and the optimizer's moments by their names."""
        for name, tensor in tensors.items():
            self._held[f"{parameter}|{name}"] = tensor.detach().cpu().contiguous().clone()
            self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes >= _FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._held:
            self._files += 1
            save_file(self._held, self._path / f"{self._files:05d}.safetensors")
            self._held, self._bytes = {}, 0


class StateReader:
    """Reads what `StateWriter` wrote, tensor by tensor."""

    def __init__(self, path: Path) -> None:
        self._files: dict[str, Path] = {}
        for file in sorted((path / _DIRECTORY).glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                self._files |= dict.fromkeys(tensors.keys(), file)
        if _STEPS not in self._files:
            raise RunDirectoryError(
                f"{path} has no training state in {_DIRECTORY}/, so no run goes on from it; set "
                "run.overwrite=true to start again, or student.model to its path"
            )
        self.steps = int(self._read(_STEPS))

    def tensors(self, parameter: str) -> dict[str, Tensor]:
        """`weight` and moments of a parameter; KeyError if it was not trained then."""
        keys = [key for key in self._files if key.rpartition("|")[0] == parameter]
        if not keys:
            raise KeyError(parameter)
        return {key.rpartition("|")[2]: self._read(key) for key in keys}

    def _read(self, key: str) -> Tensor:
        with safe_open(self._files[key], framework="pt") as tensors:
            return tensors.get_tensor(key)
