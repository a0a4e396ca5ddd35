"""The processes that share one model, and the few numbers that they exchange."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from minidist.types import Array, RankGroup


class OneProcess:
    """A model that no other process shares: process 0 of 1, and sums and largest values are those of this process."""

    rank, size = 0, 1

    def total(self, values: Array) -> Array:
        """`values` unchanged."""
        return values

    def largest(self, values: Sequence[int]) -> list[int]:
        """`values` unchanged."""
        return list(values)

    def peak(self, values: Array) -> Array:
        """`values` unchanged."""
        return values

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Leave the tensors as they are."""


class ProcessGroup:
    """Process `rank` of the `size` processes of a torch.distributed group, which it joins. All of them must make the same calls
    in the same order; the numbers travel over gloo, on the CPU.

    `device`: type of the ranks' devices, `cuda` or `cpu`.
    """

    def __init__(self, group: RankGroup, device: str) -> None:
        self.rank = group.rank
        self.size = group.size
        # NCCL would send small numbers through the GPU.
        self._gloo: Any = _join(group, device)

    def total(self, values: Array) -> Array:
        """Sum over ranks, element by element, in float64."""
        numbers = torch.from_numpy(np.asarray(values, dtype=np.float64).copy())
        torch.distributed.all_reduce(numbers, group=self._gloo)
        return numbers.numpy()

    def largest(self, values: Sequence[int]) -> list[int]:
        """Largest value of any rank at each index; ranks may pass lists of different lengths."""
        return self._largest(list(values) + [0] * (self._largest([len(values)])[0] - len(values)))

    def peak(self, values: Array) -> Array:
        """Largest value of any rank, element by element, in float64."""
        numbers = torch.from_numpy(np.asarray(values, dtype=np.float64).copy())
        torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX, group=self._gloo)
        return numbers.numpy()

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, on any device, by its sum over ranks."""
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)

    def _largest(self, values: list[int]) -> list[int]:
        numbers = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX, group=self._gloo)
        return numbers.tolist()


Group = OneProcess | ProcessGroup
"""The processes that share one model."""


def _join(group: RankGroup, device: str) -> Any:
    """Join the process group of this rank; returns a gloo group of the same ranks. A group of one meets in a file, so that no
    port is opened that another run could want."""
    # The role's own device: the variable that this process has inherited may name that of another role.
    os.environ["DS_ACCELERATOR"] = device
    import deepspeed
    import deepspeed.comm

    if not torch.distributed.is_initialized():
        # Each rank sees its own device alone, so that device has index 0 everywhere.
        os.environ.update(RANK=str(group.rank), WORLD_SIZE=str(group.size), LOCAL_RANK="0", LOCAL_SIZE="1")
        meeting = group.meeting or f"file://{Path(tempfile.mkdtemp(prefix='minidist-ranks-')) / 'store'}"
        backend, own = ("nccl", torch.device("cuda", 0)) if device == "cuda" else ("gloo", None)
        options: dict[str, Any] = {"rank": group.rank, "world_size": group.size, "device_id": own}
        torch.distributed.init_process_group(backend, init_method=meeting, **options)
    if not deepspeed.comm.is_initialized():
        # The shared-memory extension would speed up gloo between the ranks of one node, but compiling it takes half a minute
        # on every new machine, and gloo does the same arithmetic.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.comm.init_distributed(dist_backend=torch.distributed.get_backend(), dist_init_required=False)
    return None if torch.distributed.get_backend() == "gloo" else torch.distributed.new_group(backend="gloo")
