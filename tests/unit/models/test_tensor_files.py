"""Safetensors files: read by ranges, written tensor by tensor, as the library reads and writes them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minidist.errors import ModelError
from minidist.models.tensor_files import TensorWriter, read_elements, read_header, read_tensor, slots_of
from minidist.run.files import sha256


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "float": torch.randn(5, 7),
        "scalar": torch.tensor(3.0),
        "half": torch.randn(3, 3).to(torch.bfloat16),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
        "flags": torch.tensor([True, False, True]),
    }


def write(file: Path, held: dict[str, Tensor]) -> str:
    with TensorWriter(file, {name: (each.dtype, each.shape) for name, each in held.items()}, {"format": "pt"}) as writer:
        for name, tensor in held.items():
            writer.add(name, tensor)
        return writer.close()


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == each.dtype and torch.equal(found[name], each) for name, each in wanted.items()
    )


def test_the_library_reads_what_is_written_and_the_sum_is_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    held = tensors() | {"transposed": torch.randn(6, 2).T}
    held = dict(sorted(held.items(), key=lambda pair: -pair[1].dtype.itemsize))
    assert write(file, held) == sha256(file)
    assert same(load_file(file), held)
    assert read_header(file)[1] == {"format": "pt"}


def test_what_the_library_writes_is_read_whole_and_by_ranges(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tensors(), file)
    slots = slots_of(tmp_path, "student.model")
    assert same({name: read_tensor(slot) for name, slot in slots.items()}, tensors())
    flat = tensors()["float"].flatten()
    assert all(torch.equal(read_elements(slots["float"], a, b), flat[a:b]) for a in range(36) for b in range(a, 36))


def test_a_cut_file_is_no_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tensors(), file)
    whole = file.read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"student.model: .*model.safetensors is not a whole file of weights"):
            slots_of(tmp_path, "student.model")


def test_a_range_of_elements_reads_no_others(tmp_path: Path) -> None:
    """The file has a hole of a terabyte before the elements that are asked for."""
    file = tmp_path / "a.safetensors"
    write(file, {"large": torch.zeros(4)})
    slot = read_header(file)[0]["large"]
    with file.open("r+b") as opened:
        opened.truncate(slot.start + (1 << 40))
        opened.seek(slot.start + (1 << 40) - 8)
        opened.write(torch.tensor([1.0, 2.0]).numpy().tobytes())
    vast = type(slot)(slot.file, slot.start, slot.dtype, torch.Size([1 << 38]))
    assert read_elements(vast, (1 << 38) - 2, 1 << 38).tolist() == [1.0, 2.0]
