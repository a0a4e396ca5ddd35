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


_REMEDY = "set run.overwrite=true to start again"


class StateReader:
    """Reads the files of `save_state`, tensor by tensor. Raises RunDirectoryError if `path` holds none, or others."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, Path] = {}
        for file in sorted((path / _DIRECTORY).glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt") as tensors:
                    self._files |= dict.fromkeys(tensors.keys(), file)
            except (OSError, SafetensorError) as error:
                damaged = f"{file} is no whole file of training state ({error})"
                raise RunDirectoryError(f"{damaged}; {_REMEDY}") from None
        if _STEPS not in self._files:
            raise RunDirectoryError(
                f"{path} has no training state in {_DIRECTORY}/, so a run cannot resume from it; set run.overwrite=true to "
                "start again, or student.model to its path"
            )
        self.steps = self._count(_STEPS)

    def tensors(self, parameter: str) -> dict[str, Tensor]:
        """`weight` and moments of a parameter. Raises RunDirectoryError if it was not trained."""
        keys = [key for key in self._files if key.rpartition("|")[0] == parameter]
        if not keys:
            raise RunDirectoryError(f"{self._path} has no training state of {parameter}: it is of another model; {_REMEDY}")
        return {key.rpartition("|")[2]: self._read(key) for key in keys}

    def _count(self, key: str) -> int:
        """A whole number, not negative. Raises RunDirectoryError for another tensor."""
        value = self._read(key)
        if value.numel() != 1 or value.is_floating_point() or value.is_complex() or value.item() < 0:
            found = f"a tensor of shape {list(value.shape)} and type {value.dtype}" if value.numel() != 1 else f"{value.item()}"
            raise RunDirectoryError(f"{self._files[key]}: {key} is {found}, and must be a whole number of steps; {_REMEDY}")
        return int(value)

    def _read(self, key: str) -> Tensor:
        with safe_open(self._files[key], framework="pt") as tensors:
            return tensors.get_tensor(key)
