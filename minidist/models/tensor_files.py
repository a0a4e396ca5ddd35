"""Safetensors files, read by ranges of elements and written tensor by tensor, so that no process holds more than it needs.

Layout of a file: the length of its header in 8 bytes, the header as JSON (name to dtype, shape, and first and last byte after
the header), and the tensors' bytes. Source: https://github.com/huggingface/safetensors, "Format".
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minidist.errors import ModelError
from minidist.models.files import WEIGHTS, refused, weight_files

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names that the files give to types of numbers."""
_METADATA = "__metadata__"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8
_PIECE = 16 << 20  # bytes that are copied from a device, written and summed at a time


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies: its file, its first byte there, its dtype and its shape."""

    file: Path
    start: int
    dtype: torch.dtype
    shape: torch.Size


def read_header(file: Path) -> tuple[dict[str, Slot], dict[str, str]]:
    """The tensors of a file by name, and its metadata. Raises OSError or ValueError unless it is a whole safetensors file."""
    if not file.is_file():  # a pipe or a device would never end
        raise ValueError("it is not a file")
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(opened.read(length))
        except RecursionError:
            raise ValueError("a header that is nested too deep") from None
    if not isinstance(header, dict):
        raise ValueError("a header that is no list of tensors")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise ValueError("metadata that are no texts")
    slots = {name: _slot(file, 8 + length, entry) for name, entry in header.items()}
    last = max((slot.start + math.prod(slot.shape) * slot.dtype.itemsize for slot in slots.values()), default=8 + length)
    if last != size:
        raise ValueError(f"{size} bytes, where its header says {last}")
    return slots, metadata


def _slot(file: Path, begin: int, entry: Any) -> Slot:
    try:
        (start, stop), shape, dtype = entry["data_offsets"], entry["shape"], DTYPES[entry["dtype"]]
        sizes = [int(each) for each in (start, stop, *shape)]
        if sizes != [start, stop, *shape] or min(sizes) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError
        return Slot(file, begin + start, dtype, torch.Size(shape))
    except (KeyError, TypeError, IndexError, ValueError, OverflowError, RuntimeError):
        raise ValueError(f"an entry of the header that minidist cannot read: {str(entry)[:100]}") from None


def read_elements(slot: Slot, start: int = 0, stop: int | None = None) -> Tensor:
    """Elements `start` to `stop` of a tensor, flat, in its dtype. Only their bytes are read. Raises OSError for a file that
    ends before them."""
    count = (math.prod(slot.shape) if stop is None else stop) - start
    found = torch.empty(count, dtype=slot.dtype)
    target, at = memoryview(_bytes(found)), slot.start + start * slot.dtype.itemsize
    handle = os.open(slot.file, os.O_RDONLY)
    try:
        while len(target):
            done = os.preadv(handle, [target[: 1 << 30]], at)
            if done == 0:
                raise OSError(f"{slot.file} ends before byte {at + len(target)}")
            target, at = target[done:], at + done
    finally:
        os.close(handle)
    return found


def read_tensor(slot: Slot) -> Tensor:
    """The whole tensor."""
    return read_elements(slot).view(slot.shape)


def slots_of(path: Path, where: str) -> dict[str, Slot]:
    """The tensors of a model's safetensors files by name. Raises ModelError."""
    whole = path / WEIGHTS
    files = [whole] if whole.is_file() else [path / name for name in weight_files(path, where)]
    found: dict[str, Slot] = {}
    for file in files:
        with refused(f"{where}: {file} is not a whole file of weights; copy the model again"):
            found |= read_header(file)[0]
    if not found:
        raise ModelError(f"{where}: {path} holds no weights")
    return found


class TensorWriter:
    """Writes one file, whose tensors are given one after another in the order of `layout`, and sums its bytes as they go.

    Args:
        file: is forced to the disk when it is whole.
        layout: dtype and shape of each tensor.
        metadata: of the header.
    """

    def __init__(
        self, file: Path, layout: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str] | None = None
    ) -> None:
        self._expected = list(layout.items())
        self._sum = hashlib.sha256()
        self._opened = file.open("wb", buffering=0)
        try:
            self._write(_header(layout, metadata or {}))
        except BaseException:
            self._opened.close()
            raise

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor."""
        expected, (dtype, shape) = self._expected.pop(0)
        found = (name, tensor.dtype, tuple(tensor.shape))
        assert found == (expected, dtype, tuple(shape)), f"{found} in the place of {expected}, {dtype}, {tuple(shape)}"
        flat = tensor.detach().contiguous().view(-1)
        step = max(1, _PIECE // dtype.itemsize)
        for start in range(0, len(flat), step):
            self._write(memoryview(_bytes(flat[start : start + step].cpu())))

    def close(self) -> str:
        """End the file, force it to the disk and return its sha256 sum, hexadecimal."""
        assert not self._expected, f"{self._expected[0][0]} is missing"
        os.fsync(self._opened.fileno())
        self._opened.close()
        return self._sum.hexdigest()

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._sum.update(data)
        rest = memoryview(data)
        while len(rest):
            rest = rest[self._opened.write(rest) :]


def write_tensors(file: Path, tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors that are in memory already; returns the file's sha256 sum."""
    held = in_order(dict(tensors))
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in held.items()}
    with TensorWriter(file, layout, metadata) as writer:
        for name, tensor in held.items():
            writer.add(name, tensor)
        return writer.close()


def in_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they lie in a file: those of large elements first, so that each begins at a multiple of its element."""
    return dict(sorted(tensors.items(), key=lambda pair: -pair[1].dtype.itemsize))


def _header(layout: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(flat: Tensor) -> Any:
    """The memory of a flat tensor of the CPU."""
    return flat.view(torch.uint8).numpy() if flat.numel() else b""
