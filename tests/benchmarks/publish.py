"""Publishing weights against a plain copy of their bytes: `python -m tests.benchmarks.publish`.

A learner and a vLLM engine, each in a Ray actor. Timed in turn, in one run, after two publications: a copy of the student's
bytes from memory to memory in one process, the parts of a publication one after another, and a publication as a run makes it,
proof included. Medians.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from minidist.cluster.cluster import Cluster
from minidist.cluster.machine import cores
from minidist.config.cluster import ClusterConfig
from minidist.config.data import RenderConfig
from minidist.config.learner import LearnerConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.rollout import RolloutConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.roles.make import RoleContext, make_engine, make_learner
from minidist.roles.transfer import ObjectStoreTransfer
from tests.support.config import objective_config

RESULTS, ROUNDS, PARTS = Path("runs/bench/publish.json"), 7, ("gather", "load", "probe", "score")


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=256, n_layer=4, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=0))


def llama(vocabulary: int, hidden: int, layers: int, heads: int) -> PreTrainedModel:
    shape = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    shape |= {"num_key_value_heads": heads, "max_position_embeddings": 512, "vocab_size": vocabulary}
    return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))


CASES = {
    "Llama, 4.5 M": lambda: llama(4096, 192, 6, 3),
    "GPT-2, 16 M, tied": _gpt2,
    "Llama, 250 M": lambda: llama(16000, 1024, 15, 16),
}


def main() -> None:
    print(f"float32, {cores()} threads; milliseconds, medians of {ROUNDS}")
    print(f"{'student':<20}{'MiB':>6}{'copy':>8}" + "".join(f"{part:>9}" for part in PARTS) + f"{'publish':>9}{'/ copy':>8}")
    rows = []
    for name, make in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"student": name} | asyncio.run(_measure(Path(folder), make())))
        shown = [rows[-1]["copy"], *(rows[-1][part] for part in PARTS), rows[-1]["publish"]]
        times = f"{1e3 * shown[0]:>8.1f}" + "".join(f"{1e3 * each:>9.1f}" for each in shown[1:])
        print(f"{name:<20}{rows[-1]['mib']:>6.0f}{times}{rows[-1]['ratio']:>8.1f}", flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1))


async def _measure(folder: Path, model: PreTrainedModel) -> dict[str, Any]:
    """Seconds of each part, MiB of the student, and the ratio of a publication to a copy."""
    renderer = Renderer(character_tokenizer("0123456789"), RenderConfig())
    model.save_pretrained(folder)
    renderer.tokenizer.save_pretrained(folder)
    size = sum(tensor.nbytes for tensor in {id(each): each for each in model.parameters()}.values())
    del model
    cluster = Cluster(ClusterConfig(object_store_gib=4.0), folder / "logs", ["rollout", "learner"])
    async with cluster:
        student, context = StudentConfig(model=str(folder)), RoleContext(renderer, max_tokens=256)
        objectives = {"main": objective_config("supervised")}
        learner: Any = await cluster.host(
            "learner",
            make_learner,
            context=context,
            student=student,
            config=LearnerConfig(),
            objectives=objectives,
            teacher=None,
        )
        rollout, served = RolloutConfig(kv_cache_gib=0.25), ModelConfig(model=str(folder))
        engine: Any = await cluster.host("rollout", make_engine, context=context, model=served, rollout=rollout)
        transfer = ObjectStoreTransfer(tolerance_nats=5e-3)
        for _ in range(2):
            await transfer.publish(learner, [engine])
        source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
        rounds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            target.copy_(source)
            seconds = {"copy": time.perf_counter() - start}
            seconds |= await _parts(learner, engine)
            _, seconds["publish"] = await _timed(transfer.publish(learner, [engine]))
            rounds.append(seconds)
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    return medians | {"mib": size / 2**20, "ratio": medians["publish"] / medians["copy"]}


async def _parts(learner: Any, engine: Any) -> dict[str, float]:
    """Seconds of the parts of a publication, one after another."""
    weights, gather = await _timed(learner.keep("weights"))
    _, load = await _timed(engine.load(weights))
    probe, probed = await _timed(learner.probe(1))
    scored, score = await _timed(engine.score(probe.tokens.tolist()))
    assert np.abs(np.asarray(scored) - probe.logprobs).max() < 5e-3
    return dict(zip(PARTS, (gather, load, probed, score), strict=True))


async def _timed(call: Awaitable[Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = await call
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
