"""Weights from the learner, in the processes of vLLM: a backend for gloo beside vLLM's own for NCCL and CUDA IPC.

vLLM imports this module in each of its processes (`worker_extension_cls`), before it makes the backend that the engine's
`weight_transfer_config` names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload.inplace import reload_weights

from minidist.channels.gloo import GlooGroup
from minidist.models.by_layer import by_layer
from minidist.rollout.vllm.reload import replace_weights, wanted_names
from minidist.types import Channel


class Registered:
    """Adds nothing to vLLM's worker: naming it as an extension imports this module."""


@dataclass
class GlooInit(WeightTransferInitInfo):
    """The channel, and the engine's first process in it."""

    channel: Channel
    first: int


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """The tensors of an update, in the order in which they come: the fields of `Outline`."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    tied: dict[str, str]


class GlooReceiver(WeightTransferEngine[GlooInit, GlooUpdate]):
    """Takes the tensors of one decoder layer after another from the learner's first rank, each process its part of them."""

    init_info_cls = GlooInit
    update_info_cls = GlooUpdate
    _group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        """Meet the learner and the other processes."""
        self._group = GlooGroup(init_info.channel, init_info.first + self.parallel_config.rank)

    def start_weight_update(self) -> None:
        """Nothing: the weights are replaced as they come."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive all weights. Raises RuntimeError where a peer fails or is late; the model is then part old, part new."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: GlooUpdate) -> None:
        """Replace the model's weights by those that come."""
        names = [each for name in update_info.names for each in (name, *_aliases(update_info, name))]
        layers = by_layer(wanted_names(self.model, names))
        on_gpu = self.device.type != "cpu"
        replace_weights(self.model, layers, self._groups(update_info, layers), self._own_procedure, on_gpu=on_gpu)

    def finish_weight_update(self) -> None:
        """Nothing: see `start_weight_update`."""

    def shutdown(self) -> None:
        """Leave the channel."""
        self._group = None

    def _own_procedure(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        reload_weights(self.vllm_config, self.model, tensors, weights_path=None, is_checkpoint_format=True)

    def _groups(self, update: GlooUpdate, layers: dict[str, list[str]]) -> Iterator[list[tuple[str, Tensor]]]:
        """The tensors of each layer, as they come; a tied name has the tensor of the other."""
        assert self._group is not None, "the channel is joined before an update"
        rows = zip(update.names, update.shapes, update.dtype_names, strict=True)
        for names in layers.values():
            group: dict[str, Tensor] = {}
            while len(group) < len(names):
                name, shape, dtype = next(rows)
                tensor = self._group.receive(shape, getattr(torch, dtype))
                group |= {each: tensor for each in (name, *_aliases(update, name)) if each in names}
            yield [(name, group[name]) for name in names]


def _aliases(update: GlooUpdate, name: str) -> list[str]:
    return [alias for alias, shared in update.tied.items() if shared == name]


WeightTransferEngineFactory.register_engine("gloo", cast(Any, GlooReceiver))
