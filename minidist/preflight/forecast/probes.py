"""Measurements of this machine's memory and wires, and the small random models on which roles are measured."""

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

REPEATS = 4
"""Measurements of each kind beside one that warms up; the fastest counts."""


def save_random(path: Path, sizes: tuple[int, ...], vocabulary: int) -> Any:
    """Write a random Llama, and return it. `sizes`: hidden and intermediate size, layers, heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    ids: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    shape: dict[str, Any] = dict(zip(names, sizes, strict=True))
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=512, **shape, **ids)
    model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    return model


def memory_bandwidth() -> float:
    """Bytes/s of reading and writing that a copy of a large array achieves."""
    source = np.ones(32_000_000)
    target = np.empty_like(source)

    def seconds() -> float:
        start = time.perf_counter()
        np.copyto(target, source)
        return time.perf_counter() - start

    return 2 * source.nbytes / min(seconds() for _ in range(REPEATS + 1))


def broadcast_rate() -> float:
    """Bytes/s of a broadcast between two processes."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(2) as pool:
        ranks = [pool.apply_async(_broadcast, (rank, f"{folder}/rendezvous")) for rank in range(2)]
        return statistics.mean(rank.get(120) for rank in ranks)


def _broadcast(rank: int, rendezvous: str) -> float:
    """One rank of the broadcast."""
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    tensor, found = torch.ones(4_000_000), []
    for _ in range(REPEATS + 1):
        distributed.barrier()
        start = time.perf_counter()
        distributed.broadcast(tensor, 0)
        distributed.barrier()
        found.append(time.perf_counter() - start)
    distributed.destroy_process_group()
    return tensor.nbytes / min(found)
