"""What vLLM is told of a channel and of the tensors that come over it, by its weight-transfer backend."""

from typing import Any

from minidist.types import Channel, Outline

EXTENSION = "minidist.rollout.vllm.receive.Registered"
"""Registers the gloo backend in every process of an engine."""


def arguments(backend: str | None) -> dict[str, Any]:
    """The arguments of vLLM's engine with which it receives weights over a channel; none where it does not."""
    if backend is None:
        return {}
    extension = {"worker_extension_cls": EXTENSION} if backend == "gloo" else {}
    return {"weight_transfer_config": {"backend": backend}} | extension


def join_info(channel: Channel, first: int) -> dict[str, Any]:
    """`init_info` of vLLM's backend; `first`: number of the engine's first process in the channel."""
    if channel.backend == "gloo":
        return {"channel": channel, "first": first}
    if channel.backend == "ipc":
        return {}
    meeting = {"master_address": channel.host, "master_port": channel.port, "world_size": channel.size}
    return meeting | {"rank_offset": first, "packed": True}


def update_info(backend: str, outline: Outline, handles: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """`update_info` of vLLM's backend. `handles`: of the tensors, where the backend is ipc."""
    update: dict[str, Any] = {"names": list(outline.names), "dtype_names": list(outline.dtypes)}
    update["shapes"] = [list(shape) for shape in outline.shapes]
    if backend == "gloo":
        update["tied"] = outline.tied
    return update if handles is None else update | {"ipc_handles": handles}
