"""Tensors over gloo arrive as they were sent, and a process that waits in vain ends by the deadline."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor

from minidist.channels.gloo import GlooGroup, open_store
from minidist.types import Channel


def channel(port: int, size: int, timeout_s: float = 20) -> Channel:
    return Channel("gloo", "127.0.0.1", port, size, timeout_s)


def receive(meeting: Channel, like: Sequence[Tensor], rank: int) -> list[Tensor]:
    group = GlooGroup(meeting, rank)
    return [group.receive(tensor.shape, tensor.dtype) for tensor in like]


def test_every_process_gets_the_bits_that_were_sent() -> None:
    table = torch.randn(6, 4)
    sent = [table, table.T, table[:, 1:2].bfloat16(), table.double(), torch.arange(5), torch.tensor(3.0), table > 0]
    sent += [table[:0], torch.arange(3, dtype=torch.int16)]  # gloo knows no short integers
    store = open_store("127.0.0.1")
    meeting = channel(store.port, 3)
    with ThreadPoolExecutor(2) as pool:
        receiving = pool.map(partial(receive, meeting, sent), (1, 2))
        GlooGroup(meeting, 0, store).send((str(number), tensor) for number, tensor in enumerate(sent))
        for found in receiving:
            assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(found, sent, strict=True))


def test_who_waits_in_vain_ends_by_the_deadline() -> None:
    store = open_store("127.0.0.1")
    meeting = channel(store.port, 2, timeout_s=0.5)
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(receive, meeting, [torch.ones(2)], 1)
        sender = GlooGroup(meeting, 0, store)  # joins, and never sends
        began = time.monotonic()
        with pytest.raises(RuntimeError, match=r"(?i)time.*out"):
            receiving.result()
    assert time.monotonic() - began < 5
    del sender
