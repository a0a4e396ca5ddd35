"""A learner's training state on disk: tensors by name in safetensors files of bounded size.

They lie in the directory `training/`, since vLLM takes every safetensors file beside a model for a part of the model.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minidist.errors import RunDirectoryError

_FILE_BYTES = 4 << 30
_DIRECTORY = "training"
_STEPS = "optimizer_steps"


def save_state(path: Path, steps: int, state: Iterable[tuple[str, Mapping[str, Tensor]]], *, write: bool = True) -> None:
    """Write the tensors of each parameter after `steps` optimizer steps into training/00001.safetensors and so on.

    All ranks read `state`, since each may hold a part of every tensor; the first of them has `write` set. At most one file is
    held in memory.
    """
    if not write:
        for _ in state:
            pass
        return
    (path / _DIRECTORY).mkdir(exist_ok=True)
    for number, tensors in enumerate(_files(steps, state), 1):
        save_file(tensors, path / _DIRECTORY / f"{number:05d}.safetensors")


def _files(steps: int, state: Iterable[tuple[str, Mapping[str, Tensor]]]) -> Iterator[dict[str, Tensor]]:
    """The tensors of each file, copied."""
    held, size = {_STEPS: torch.tensor([steps])}, 0
    for parameter, tensors in state:
        for name, tensor in tensors.items():
            held[f"{parameter}|{name}"] = tensor.detach().cpu().contiguous().clone()
            size += tensor.nbytes
        if size >= _FILE_BYTES:
            yield held
            held, size = {}, 0
    if held:
        yield held


class StateReader:
    """Reads the files of `save_state`, tensor by tensor. Raises RunDirectoryError if `path` holds none."""

    def __init__(self, path: Path) -> None:
        self._files: dict[str, Path] = {}
        for file in sorted((path / _DIRECTORY).glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt") as tensors:
                    self._files |= dict.fromkeys(tensors.keys(), file)
            except (OSError, SafetensorError) as error:
                damaged = f"{file} is no whole file of training state ({error})"
                raise RunDirectoryError(f"{damaged}; set run.overwrite=true to start again") from None
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
