"""What is opened to other processes stays in memory until they have read it. The GPU's part is played by CPU tensors."""

import gc
from types import SimpleNamespace
from weakref import ref

import pytest
import torch
from torch.multiprocessing import reductions

from minidist.channels.ipc import IpcSender


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor.clone())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-1"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)


def test_exported_tensors_are_kept_until_they_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[ref[torch.Tensor]] = []

    def reduce(tensor: torch.Tensor) -> tuple[None, tuple[float, bool]]:
        shared.append(ref(tensor))
        return None, (float(tensor.sum()), tensor.is_contiguous())

    monkeypatch.setattr(reductions, "reduce_tensor", reduce)
    sender, table = IpcSender(), torch.arange(6.0).reshape(2, 3)
    assert sender.export([("a", table), ("b", table.T)]) == [{"GPU-1": (15.0, True)}] * 2
    gc.collect()
    assert all(each() is not None for each in shared)
    sender.release()
    gc.collect()
    assert all(each() is None for each in shared)
