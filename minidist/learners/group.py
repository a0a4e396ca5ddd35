"""What the ranks of one model say to one another: sums and largest values of a few numbers. Alone, each is what it was."""

import os
from collections.abc import Sequence

import numpy as np

from minidist.types import Array, RankGroup


class Alone:
    """One process and nobody to ask."""

    rank, size = 0, 1

    def total(self, values: Array) -> Array:
        """Sum over ranks, element by element, in float64."""
        return values

    def largest(self, values: Sequence[int]) -> list[int]:
        """Largest value of any rank at each place; ranks may bring lists of different lengths."""
        return list(values)


class Joined(Alone):
    """A rank of a torch.distributed process group, on whose CPU side the numbers travel."""

    def __init__(self, group: RankGroup, device: str) -> None:
        self.rank, self.size = group.rank, group.size
        _join(group, device)

    def total(self, values: Array) -> Array:
        import torch

        numbers = torch.from_numpy(np.asarray(values, dtype=np.float64).copy())
        torch.distributed.all_reduce(numbers, group=_numbers())
        return numbers.numpy()

    def largest(self, values: Sequence[int]) -> list[int]:
        return self._largest(list(values) + [0] * (self._largest([len(values)])[0] - len(values)))

    def _largest(self, values: list[int]) -> list[int]:
        import torch

        numbers = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX, group=_numbers())
        return numbers.tolist()


_NUMBERS: list[object] = []


def _numbers() -> object:
    """A gloo group for small numbers: NCCL would send them through the GPU."""
    return _NUMBERS[0] if _NUMBERS else None


def _join(group: RankGroup, device: str) -> None:
    """Start the process group of this rank. Alone, over a file: no port is opened that another run could want."""
    import tempfile
    from pathlib import Path

    import deepspeed
    import deepspeed.comm
    import torch.distributed

    if not torch.distributed.is_initialized():
        # Each rank sees its own device alone, so it is the first of its kind everywhere.
        os.environ.update(RANK=str(group.rank), WORLD_SIZE=str(group.size), LOCAL_RANK="0", LOCAL_SIZE="1")
        meeting = group.meeting or f"file://{Path(tempfile.mkdtemp(prefix='minidist-ranks-')) / 'store'}"
        backend = "nccl" if device == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, init_method=meeting, rank=group.rank, world_size=group.size)
        if backend == "nccl":
            _NUMBERS.append(torch.distributed.new_group(backend="gloo"))
    if not deepspeed.comm.is_initialized():
        # The shared-memory extension would speed up gloo between the ranks of one node; compiling it takes half a minute of
        # every fresh machine, and gloo does the same arithmetic.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.comm.init_distributed(dist_backend=torch.distributed.get_backend(), dist_init_required=False)
