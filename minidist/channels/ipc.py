"""Weights in a GPU's memory, opened by the processes that share the GPU, as vLLM's own engines receive them
(vllm/distributed/weight_transfer/ipc_engine.py): no byte is copied on the way."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

Handles = list[dict[str, Any]]
"""Of each tensor, the handle that opens it on a GPU, by the GPU's UUID."""


class IpcSender:
    """One rank of the learner, each on a GPU of its own, which it may share with an engine."""

    def __init__(self) -> None:
        self._shared: list[Tensor] = []
        """Opened by other processes: they must stay until all have read them."""

    def export(self, tensors: Iterable[tuple[str, Tensor]]) -> Handles:
        """Handles of the tensors on the GPUs of all ranks, which make the same calls; they are valid until `release`."""
        from torch.multiprocessing.reductions import reduce_tensor

        self._shared = [tensor.detach().cuda().contiguous() for _, tensor in tensors]
        torch.cuda.current_stream().synchronize()
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        return _of_all_ranks([{gpu: reduce_tensor(tensor)[1]} for tensor in self._shared])

    def release(self) -> None:
        """Free what was copied to be shared."""
        self._shared = []
        torch.cuda.ipc_collect()


def _of_all_ranks(handles: Handles) -> Handles:
    """The handles that each rank has for the same tensors, put together."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return handles
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, handles)
    return [{gpu: handle for one in each for gpu, handle in one.items()} for each in zip(*ranks, strict=True)]
