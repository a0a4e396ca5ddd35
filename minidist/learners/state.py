"""A learner's training state on disk: every rank writes its own elements of each tensor, and any number of ranks reads them.

The files lie in the directory `training/`, since vLLM takes every safetensors file beside a model for a part of the model: one
for each rank, `00001.safetensors` of the first. A tensor is named `PARAMETER|KIND`. One that lies whole in a file has its shape
there; a rank's elements are flat, and the file's metadata gives their first element and the whole tensor's shape.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from minidist.errors import RunDirectoryError
from minidist.models.tensor_files import Slot, TensorWriter, read_elements, read_header
from minidist.run.files import shaped

_DIRECTORY = "training"
_STEPS = "optimizer_steps"
_PIECES = "pieces"
_PLACES = dict[str, tuple[NonNegativeInt, list[NonNegativeInt]]]
"""Of each tensor in a file that is a part of one: the part's first element, and the shape of the whole."""


@dataclass(frozen=True)
class Piece:
    """The elements from `start` to `stop`, flat, of a tensor of this shape, which `read` gives."""

    parameter: str
    kind: str
    dtype: torch.dtype
    shape: torch.Size
    start: int
    stop: int
    read: Callable[[], Tensor]

    @classmethod
    def whole(cls, parameter: str, kind: str, tensor: Tensor) -> "Piece":
        """All elements of a tensor."""
        return cls(parameter, kind, tensor.dtype, tensor.shape, 0, tensor.numel(), lambda: tensor)

    @property
    def key(self) -> str:
        return f"{self.parameter}|{self.kind}"

    @property
    def is_whole(self) -> bool:
        return self.stop - self.start == self.shape.numel()


def whole_pieces(state: Iterable[tuple[str, Mapping[str, Tensor]]]) -> list[Piece]:
    """The tensors of each parameter, whole."""
    return [Piece.whole(name, kind, tensor) for name, tensors in state for kind, tensor in tensors.items()]


def save_state(path: Path, steps: int, pieces: Iterable[Piece], *, rank: int = 0) -> dict[str, str]:
    """Write this rank's pieces after `steps` optimizer steps; returns the sha256 sum of its file, by name. No copy of the
    pieces is in memory."""
    held = sorted((piece for piece in pieces if piece.stop > piece.start), key=lambda piece: -piece.dtype.itemsize)
    if rank > 0 and not held:
        return {}
    counts = {_STEPS: (torch.int64, torch.Size([1]))} if rank == 0 else {}
    layout = {each.key: (each.dtype, each.shape if each.is_whole else (each.stop - each.start,)) for each in held}
    places = {each.key: [each.start, list(each.shape)] for each in held if not each.is_whole}
    name = f"{_DIRECTORY}/{rank + 1:05d}.safetensors"
    (path / _DIRECTORY).mkdir(parents=True, exist_ok=True)
    with TensorWriter(path / name, counts | layout, {_PIECES: json.dumps(places)} if places else None) as writer:
        if rank == 0:
            writer.add(_STEPS, torch.tensor([steps]))
        for piece in held:
            writer.add(piece.key, piece.read().view(layout[piece.key][1]))
        return {name: writer.close()}


_REMEDY = "set run.overwrite=true to start again"


@dataclass(frozen=True)
class _Stored:
    """Elements in a file: the first of them in the tensor, and the tensor's shape."""

    slot: Slot
    start: int
    shape: torch.Size

    @property
    def stop(self) -> int:
        return self.start + self.slot.shape.numel()


class StateReader:
    """Reads the files of `save_state`, by tensor or by elements. Raises RunDirectoryError if `path` holds none, or others."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored: dict[str, list[_Stored]] = {}
        for file in sorted((path / _DIRECTORY).glob("*.safetensors")):
            try:
                slots, metadata = read_header(file)
                places = shaped(json.loads(metadata.get(_PIECES, "{}")), _PLACES, f"{file}: the list of pieces", _REMEDY)
                for key, slot in slots.items():
                    start, shape = places.get(key, (0, slot.shape))
                    self._stored.setdefault(key, []).append(_Stored(slot, start, torch.Size(shape)))
            except (OSError, ValueError, TypeError, RecursionError) as error:
                if isinstance(error, RunDirectoryError):
                    raise
                damaged = f"{file} is no whole file of training state ({error})"
                raise RunDirectoryError(f"{damaged}; {_REMEDY}") from None
        if _STEPS not in self._stored:
            raise RunDirectoryError(
                f"{path} has no training state in {_DIRECTORY}/, so a run cannot resume from it; set run.overwrite=true to "
                "start again, or student.model to its path"
            )
        self.steps = self._count(_STEPS)

    @property
    def keys(self) -> set[str]:
        """`PARAMETER|KIND` of each tensor."""
        return set(self._stored) - {_STEPS}

    def tensors(self, parameter: str) -> dict[str, Tensor]:
        """`weight` and moments of a parameter, whole. Raises RunDirectoryError if it was not trained."""
        shapes = self.shapes(parameter)
        return {kind: self.elements(parameter, kind, 0, shape.numel()).view(shape) for kind, shape in shapes.items()}

    def shapes(self, parameter: str) -> dict[str, torch.Size]:
        """The shape of a parameter's `weight` and moments. Raises RunDirectoryError if it was not trained."""
        keys = [key for key in self._stored if key.rpartition("|")[0] == parameter]
        if not keys:
            raise RunDirectoryError(f"{self._path} has no training state of {parameter}: it is of another model; {_REMEDY}")
        return {key.rpartition("|")[2]: self._stored[key][0].shape for key in keys}

    def elements(self, parameter: str, kind: str, start: int, stop: int) -> Tensor:
        """Elements of a tensor, flat, whichever ranks wrote them; only these are read. Raises RunDirectoryError where some are
        missing."""
        stored = sorted(self._stored[f"{parameter}|{kind}"], key=lambda each: each.start)
        parts, at = [], start
        for each in stored:
            if each.start <= at < min(stop, each.stop):
                end = min(stop, each.stop)
                parts.append(read_elements(each.slot, at - each.start, end - each.start))
                at = end
        if at < stop:
            raise RunDirectoryError(
                f"{self._path}/{_DIRECTORY} has {parameter} up to element {at} of {stored[0].shape.numel()} alone: the file "
                f"of a rank is missing; {_REMEDY}"
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts or [torch.empty(0)])

    def _count(self, key: str) -> int:
        """A whole number, not negative. Raises RunDirectoryError for another tensor."""
        slot = self._stored[key][0].slot
        value = read_elements(slot)
        if value.numel() != 1 or value.is_floating_point() or value.is_complex() or value.item() < 0:
            found = f"a tensor of shape {list(slot.shape)} and type {slot.dtype}" if value.numel() != 1 else f"{value.item()}"
            raise RunDirectoryError(f"{slot.file}: {key} is {found}, and must be a whole number of steps; {_REMEDY}")
        return int(value)
