"""The learner's end of the channel over which its weights go to the engines."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from minidist.channels.gloo import GlooGroup, open_store
from minidist.channels.ipc import Handles, IpcSender
from minidist.channels.nccl import NcclSender, free_port
from minidist.learners.weights import StudentWeights
from minidist.run.timeline import count
from minidist.types import Channel, Outline


class WeightSender:
    """Sends the student's weights, tensor by tensor. All ranks make the same calls; the first one is at the channel."""

    def __init__(self, weights: StudentWeights, *, first: bool) -> None:
        self._weights = weights
        self._first = first
        self._store: Any = None
        self._channel: Any = None

    def outline(self) -> Outline:
        """What the weights are, as they are sent; nothing is gathered for it."""
        return self._weights.outline()

    def open(self, backend: str, host: str) -> int:
        """The port of the first rank, at its address `host`, where the engines find it."""
        if not self._first or backend == "ipc":
            return 0
        if backend == "nccl":
            return free_port(host)
        self._store = open_store(host)
        return self._store.port

    def join(self, channel: Channel) -> None:
        """Meet the engines. Raises RuntimeError where they do not come in time."""
        if channel.backend == "ipc":
            self._channel = IpcSender()
        elif self._first:
            self._channel = NcclSender(channel) if channel.backend == "nccl" else GlooGroup(channel, 0, self._store)

    def send(self, names: Sequence[str]) -> None:
        """Send these tensors of the outline, in this order, to engines that receive them at the same time. Raises RuntimeError
        where one of them fails, and leaves the channel, so that the others do not wait."""
        tensors = self._counted(names)
        if self._first:
            channel, self._channel = self._channel, None
            channel.send(tensors)
            self._channel = channel
        for _ in tensors:  # the other ranks help to gather them
            pass

    def export(self, names: Sequence[str]) -> Handles:
        """Handles of these tensors for processes on the same GPU, valid until `release`."""
        return self._channel.export(self._counted(names, all_ranks=True))

    def release(self) -> None:
        """The engines have read what was exported."""
        self._channel.release()

    def _counted(self, names: Sequence[str], *, all_ranks: bool = False) -> Iterator[tuple[str, Tensor]]:
        sent = 0
        for name, tensor in self._weights.stream(names, all_ranks=all_ranks):
            sent += tensor.nbytes
            yield name, tensor
        count(publish_bytes=sent if self._first else 0)
