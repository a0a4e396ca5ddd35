"""Weights over a gloo channel into vLLM: the same bits as through the object store, proved, and never half."""

import asyncio
import os
import time
from typing import Any

import pytest

from minidist.channels.gloo import GlooGroup
from minidist.errors import CanaryError, RoleError
from minidist.roles.transfer import ChannelTransfer
from minidist.rollout.vllm.transfer import join_info, update_info
from minidist.types import Channel, Outline
from tests.integration.conftest import Stack
from tests.integration.test_equalities import EXACT, PROMPT
from tests.support import on_device

SEQUENCES = [PROMPT, [7, 7, 20, 6, 2, 15, 8]]


def over_gloo(timeout_s: float = 60) -> ChannelTransfer:
    return ChannelTransfer(EXACT, "gloo", processes=1, timeout_s=timeout_s)


def test_weights_over_gloo_are_those_of_the_object_store_to_the_last_bit(stack: Stack) -> None:
    on_device.a_channel_brings_the_bits_of_the_object_store(stack, stack.engines.members)


class Mistaken:
    """The learner, which sends one tensor in place of another."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner

    async def channel(self, verb: str, *arguments: Any) -> Any:
        if verb == "send":
            arguments = (tuple(name.replace("layers.0.mlp.gate", "layers.0.mlp.up") for name in arguments[0]),)
        return await self._learner.channel(verb, *arguments)

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._learner, verb)


def test_a_wrong_tensor_over_the_channel_is_caught(stack: Stack) -> None:
    learner: Any = Mistaken(stack.learner)
    with pytest.raises(CanaryError, match=r"weight sync 1: .* did not take the new weights"):
        stack.run(over_gloo().publish(learner, [stack.engine]))
    assert stack.run(over_gloo().publish(stack.learner, [stack.engine])) < EXACT


class Leaving:
    """An engine that takes all weights and is not there when it is to finish."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def finish(self, version: int) -> None:
        raise RoleError("the engine has left")

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._engine, verb)


def test_a_publication_that_was_given_up_stands_in_the_way_of_no_other(stack: Stack) -> None:
    leaving: Any = Leaving(stack.engine)
    with pytest.raises(RoleError, match="has left"):
        stack.run(over_gloo().publish(stack.learner, [leaving]))
    with pytest.raises(RoleError, match="weights of two versions"):
        stack.run(stack.engine.score(SEQUENCES))
    assert stack.run(over_gloo().publish(stack.learner, [stack.engine])) < EXACT


class Dying:
    """An engine's process that meets the others at the channel, takes two tensors and dies."""

    async def join(self, channel: Channel, first: int) -> bool:
        self.group = await asyncio.to_thread(GlooGroup, channel, first)
        return True

    async def receive(self, backend: str, outline: Outline, handles: None = None) -> None:
        import torch

        for shape in outline.shapes[:2]:
            await asyncio.to_thread(self.group.receive, shape, torch.float32)
        os._exit(1)

    async def close(self) -> None: ...


def test_an_engine_that_dies_ends_the_publication_and_no_engine_writes_with_half_of_it(stack: Stack) -> None:
    dying = stack.run(stack.cluster.host("rollout", Dying))
    began = time.monotonic()
    with pytest.raises(RoleError, match=r"died in receive|failed in channel"):
        stack.run(over_gloo(timeout_s=10).publish(stack.learner, [stack.engine, dying]))
    stack.dismiss(dying)
    assert time.monotonic() - began < 15
    with pytest.raises(RoleError, match=r"the engine holds weights of two versions .* publish all weights again"):
        stack.run(stack.engine.score(SEQUENCES))
    assert stack.run(over_gloo().publish(stack.learner, [stack.engine])) < EXACT
    assert stack.run(stack.engine.score(SEQUENCES)) == stack.run(stack.engines.members[1].score(SEQUENCES))


def given_to_vllm() -> dict[str, Any]:
    """In a process that has loaded vLLM: what its backends for GPUs make of what they are given."""
    from inspect import signature

    from vllm.distributed.weight_transfer import ipc_engine, nccl_common, nccl_engine, packed_tensor

    outline = Outline(("a", "b"), ("float32", "bfloat16"), ((2, 3), (4,)), {})
    handles: list[dict[str, Any]] = [{"GPU-1": ()}, {"GPU-1": ()}]
    nccl, ipc = (Channel(backend, "10.0.0.1", 4711, 3, 60) for backend in ("nccl", "ipc"))
    signature(packed_tensor.packed_nccl_broadcast_producer).bind(iterator=iter([]), group=None, src=0, post_iter_func=len)
    signature(nccl_common.trainer_init).bind({})
    joined = nccl_common.NCCLWeightTransferInitInfo(**join_info(nccl, 1))
    ipc_engine.IPCWeightTransferInitInfo(**join_info(ipc, 1))
    updates = (
        nccl_engine.NCCLWeightTransferUpdateInfo(**update_info("nccl", outline)),
        ipc_engine.IPCWeightTransferUpdateInfo(**update_info("ipc", outline, handles)),
    )
    return {"joined": vars(joined), "names": [update.names for update in updates]}


def test_what_vllms_backends_for_gpus_are_given_fits_them(stack: Stack) -> None:
    """Not more: they run on GPUs alone."""
    made = stack.run(stack.engine.ask(given_to_vllm))
    assert made["names"] == [["a", "b"]] * 2
    expected = {"master_address": "10.0.0.1", "master_port": 4711, "rank_offset": 1, "world_size": 3, "packed": True}
    assert made["joined"].items() >= expected.items()
