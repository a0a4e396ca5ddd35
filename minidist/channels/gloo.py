"""Weights over gloo, from CPU memory to CPU memory."""

import socket
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from minidist.types import Channel

_c10d: Any = torch.distributed  # its stubs lack what a process group without the default one needs
_SENDER = 0


class GlooGroup:
    """One of the processes that meet at a channel; process 0 sends, and all others receive the same tensors in the same order.

    A process that waits for longer than `channel.timeout_s`, or whose peer has died, raises RuntimeError.
    """

    def __init__(self, channel: Channel, rank: int, store: Any = None) -> None:
        wait = timedelta(seconds=channel.timeout_s)
        options = _c10d.ProcessGroupGloo._Options()
        # GLOO_SOCKET_IFNAME may name the interface of a smaller group, such as the processes of one engine.
        options._devices = [_c10d.ProcessGroupGloo.create_device(hostname=_own_address(channel))]
        options._timeout = wait
        # The store stays referenced: process 0 serves it.
        self._store = store or _c10d.TCPStore(channel.host, channel.port, is_master=False, timeout=wait)
        self._group: Any = _c10d.ProcessGroupGloo(_c10d.PrefixStore("weights", self._store), rank, channel.size, options)

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Send the tensors one after another; one on a GPU is copied to the host for as long as it is sent."""
        for _, tensor in tensors:
            self._broadcast(tensor.detach().cpu().contiguous())

    def receive(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        """The next tensor, in CPU memory."""
        tensor = torch.empty(list(shape), dtype=dtype)
        self._broadcast(tensor)
        return tensor

    def _broadcast(self, tensor: Tensor) -> None:
        """As bytes, since gloo does not know every type."""
        options = _c10d.BroadcastOptions()
        options.rootRank, options.rootTensor = _SENDER, 0
        self._group.broadcast([tensor.view(-1).view(torch.uint8)], options).wait()


def _own_address(channel: Channel) -> str:
    """The address of this machine on the way to the sender's. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((channel.host, channel.port))
        return str(probe.getsockname()[0])


def open_store(host: str) -> Any:
    """A store of this process at a free port of `host`, where the processes of a channel find one another."""
    return _c10d.TCPStore(host, 0, is_master=True, wait_for_workers=False)
