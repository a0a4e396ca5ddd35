"""Weights over NCCL, from GPU to GPU, as vLLM's own engines receive them (vllm/distributed/weight_transfer/nccl_engine.py)."""

import socket
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from minidist.types import Channel


class NcclSender:
    """The learner's end of a channel; vLLM's processes are its other ends."""

    def __init__(self, channel: Channel) -> None:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        meeting = {"master_address": channel.host, "master_port": channel.port, "world_size": channel.size}
        self._communicator: Any = trainer_init(meeting)

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Send the tensors one after another, several of them in one message."""
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        packed_nccl_broadcast_producer(
            iterator=iter(tensors), group=self._communicator, src=0, post_iter_func=lambda item: item[1].detach().cuda()
        )
        torch.cuda.current_stream().synchronize()


def free_port(host: str) -> int:
    """A port of `host` that was free a moment ago: vLLM opens the store where the processes meet."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
