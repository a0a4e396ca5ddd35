"""Weights into the files of a checkpoint, tensor by tensor, by all ranks at once: no process holds the whole model for it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minidist.models.files import INDEX, WEIGHTS
from minidist.models.filling import whole_shape
from minidist.models.names import as_in_files
from minidist.models.tensor_files import TensorWriter
from minidist.run.tracking import log

_LARGEST, _SMALLEST = 4 << 30, 1 << 30
"""Bytes of a file: at most `_LARGEST`; `_SMALLEST` or less where several ranks share the work."""


class WeightSource(Protocol):
    """A model's tensors, which ranks may hold in parts."""

    def state(self) -> dict[str, Tensor]:
        """The tensors as they are here, whole or in parts, by name."""
        ...

    def whole(self, names: Sequence[str]) -> AbstractContextManager[dict[str, Tensor]]:
        """Some tensors, complete until the context ends; all ranks ask for the same in order."""
        ...


Merge = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""The plain checkpoint's tensors from those of a model with adapters."""


@dataclass(frozen=True)
class Unit:
    """Tensors of the model that are written together, and the tensors that the files hold of them."""

    names: tuple[str, ...]
    layout: dict[str, tuple[torch.dtype, torch.Size]]

    @property
    def nbytes(self) -> int:
        return sum(shape.numel() * dtype.itemsize for dtype, shape in self.layout.values())


def save_configuration(path: Path, model: PreTrainedModel) -> None:
    """Write what transformers writes beside the weights: configuration, generation settings, and a custom model's code."""
    model.save_pretrained(path, state_dict={})
    for file in (path / WEIGHTS, path / INDEX):  # without tensors
        file.unlink(missing_ok=True)


@torch.no_grad()
def write_weights(
    path: Path,
    model: PreTrainedModel,
    source: WeightSource,
    *,
    merge: Merge,
    groups: Sequence[Sequence[str]],
    rank: tuple[int, int],
) -> dict[str, str]:
    """Write this rank's share of the model's safetensors files, and the first rank their index; returns the sha256 sum of each
    file that it wrote, by name.

    Args:
        path: the directory.
        model: names the tensors as its family's files do.
        source: gives them.
        merge: makes the plain tensors of a group.
        groups: of names whose tensors `merge` takes together.
        rank: this process's number, and the number of processes.
    """

    def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return as_in_files(model, merge(tensors))

    units = _units(source.state(), _kept(model, source.state(), groups), convert)
    files = _dealt(units, rank[1])
    count = len(files)
    names = [WEIGHTS] if count == 1 else [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    sums: dict[str, str] = {}
    failed: OSError | None = None
    named = list(zip(names, files, strict=True))
    for first in range(0, count, rank[1]):
        try:
            sums |= _write_files(path, dict(named[first : first + rank[1]]), source, convert, rank)
        except OSError as error:
            failed = failed or error  # the other ranks still need this one
    if failed is not None:
        raise failed
    if rank[0] == 0 and len(files) > 1:
        places = {tensor: name for name, file in named for unit in file for tensor in unit.layout}
        index = {"metadata": {"total_size": sum(unit.nbytes for unit in units)}, "weight_map": dict(sorted(places.items()))}
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sums


def _write_files(
    path: Path, files: Mapping[str, Sequence[Unit]], source: WeightSource, convert: Merge, rank: tuple[int, int]
) -> dict[str, str]:
    """Write as many files as there are ranks at most, each by a rank of its own, side by side."""
    own = list(files.items())[rank[0] : rank[0] + 1]
    writing = [_Writing(path / name, units, copy=rank[1] > 1) for name, units in own]
    for row in zip_longest(*files.values()):
        for owner, unit in enumerate(row):
            if unit is not None:
                with source.whole(unit.names) as tensors:
                    if owner == rank[0]:
                        writing[0].add(unit, tensors, convert)
    return {name: each.close() for (name, _), each in zip(own, writing, strict=True)}


class _Writing:
    """A file that is written while the tensors that come next are gathered. An error waits for the end, since the other ranks
    need this one to gather theirs."""

    def __init__(self, file: Path, units: Sequence[Unit], *, copy: bool) -> None:
        self._copy = copy
        self._error: Exception | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._last: Future[None] | None = None
        layout = {name: each for unit in units for name, each in unit.layout.items()}
        self._writer: TensorWriter | None = None
        self._attempt(lambda: setattr(self, "_writer", TensorWriter(file, layout, {"format": "pt"})))

    def add(self, unit: Unit, tensors: dict[str, Tensor], convert: Merge) -> None:
        """Write a unit, whose tensors are `tensors` for as long as this call takes."""
        made = convert(tensors)
        if self._copy:
            made = {name: tensor.detach().to("cpu", copy=True) for name, tensor in made.items()}
        self._attempt(self._wait)
        self._last = self._pool.submit(self._write, made, list(unit.layout))
        if not self._copy:
            self._attempt(self._wait)

    def close(self) -> str:
        """Returns the file's sum. Raises the first error."""
        self._attempt(self._wait)
        self._pool.shutdown()
        if self._error is None and self._writer is not None:
            return self._writer.close()
        if self._writer is not None:
            self._writer.__exit__()
        assert self._error is not None
        raise self._error

    def _write(self, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
        assert self._writer is not None
        for name in names:
            self._writer.add(name, tensors[name])

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def _attempt(self, call: Callable[[], Any]) -> None:
        try:
            if self._error is None:
                call()
        except Exception as error:  # noqa: BLE001 - raised again when all ranks have written
            self._error = error


def _kept(model: Any, state: Mapping[str, Tensor], groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """The groups without what the files do not hold: the second name of a tied tensor, and what the family leaves out."""
    left_out, names = set(model._keys_to_ignore_on_save or ()), dict[int, list[str]]()
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    for shared in names.values():
        main = [name for name in sorted(shared) if name not in model.all_tied_weights_keys] or shared
        left_out |= set(shared) - {main[0]}
    return [list(group) for group in groups if not left_out.intersection(group)]


def _units(state: Mapping[str, Tensor], groups: Sequence[Sequence[str]], convert: Merge) -> list[Unit]:
    """What is written together: each group, where the files hold its tensors apart from those of others; else all at once."""

    def unit(names: Sequence[str]) -> Unit:
        made = convert({name: torch.empty(whole_shape(state[name]), dtype=state[name].dtype, device="meta") for name in names})
        return Unit(tuple(names), {name: (tensor.dtype, tensor.shape) for name, tensor in _by_element(made)})

    units, whole = [unit(group) for group in groups], unit([name for group in groups for name in group])
    if {name: each for part in units for name, each in part.layout.items()} != whole.layout:
        log.warning("the files of this family hold tensors of several others: all of them are in memory at once to be written")
        units = [whole]
    return sorted(units, key=lambda each: -max(dtype.itemsize for dtype, _ in each.layout.values()))


def _by_element(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of large elements first, so that each begins at a multiple of its element in a file."""
    yield from sorted(tensors.items(), key=lambda pair: -pair[1].dtype.itemsize)


def _dealt(units: Sequence[Unit], ranks: int) -> list[list[Unit]]:
    """The units of each file."""
    total = sum(unit.nbytes for unit in units)
    limit = min(_LARGEST, max(_SMALLEST, -(-total // ranks)))
    files: list[list[Unit]] = [[]]
    size = 0
    for unit in units:
        if files[-1] and size + unit.nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(unit)
        size += unit.nbytes
    return files
