"""Published weights as tensors; low-rank adapters that are published alone are merged with the files of their base."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minidist.errors import ModelError
from minidist.models.arrays import to_tensor
from minidist.models.files import WEIGHTS, resolve, weight_files
from minidist.run.files import open_tensors
from minidist.types import Adaptation, Weights

A, B = ".lora_A", ".lora_B"


def to_tensors(weights: Weights, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint by name, a tied output head among them.

    wanted: chooses among the names where adapters are published alone; the tensors of the base are read from its files, which
    are mapped into memory, one by one.
    """
    given = {name: to_tensor(array, weights.dtypes[name]) for name, array in weights.arrays.items()}
    if weights.adaptation is None:
        yield from given.items()
        return
    with _Files(resolve(weights.adaptation.base, "student.model")) as files:
        for name, in_files in weights.adaptation.files.items():
            if wanted(name):
                yield name, _merged(weights.adaptation, name, files[in_files], given)


def adapted_names(weights: Weights) -> list[str]:
    """Names of the weights that published adapters change."""
    return [name.removesuffix(A) for name in weights.arrays if name.endswith(A)]


def merge(weight: Tensor, a_RI: Tensor, b_OR: Tensor, *, scale: float, transposed: bool) -> Tensor:
    """W + scale * B A, summed in float32 and rounded once, to the dtype of W [O, I], or [I, O] where `transposed`."""
    change = scale * (b_OR.float() @ a_RI.float())
    return (weight.float() + (change.T if transposed else change)).to(weight.dtype)


def _merged(adaptation: Adaptation, name: str, weight: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    weight = weight.to(getattr(torch, adaptation.dtype))
    if name + A not in given:
        return weight
    scale, transposed = adaptation.scale, name in adaptation.transposed
    return merge(weight, given[name + A], given[name + B], scale=scale, transposed=transposed)


def shapes_in_files(base: str) -> dict[str, list[int]]:
    """Shape of each tensor in the files of a checkpoint."""
    with _Files(resolve(base, "student.model")) as files:
        return {name: file.get_slice(name).get_shape() for name, file in files.of.items()}


class _Files:
    """The tensors of a checkpoint's files, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        whole = path / WEIGHTS
        self._paths = [whole] if whole.is_file() else [path / name for name in weight_files(path, "student.model")]
        self._opened = ExitStack()
        self.of: dict[str, Any] = {}
        """The open file of each tensor, by the tensor's name."""

    def __enter__(self) -> "_Files":
        for path in self._paths:
            file: Any = self._opened.enter_context(open_tensors(path, "copy the model again", ModelError, "pt"))
            self.of |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def __getitem__(self, name: str) -> Tensor:
        return self.of[name].get_tensor(name)
