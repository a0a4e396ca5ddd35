"""The draw of a token, log-probabilities of likely classes, and the layout of rows: `python -m tests.benchmarks.kernels`.

Ratios of what alternates in one process: the sampler to the softmax of the same logits, and to vLLM's own sampler; lists of the
64 likeliest classes as arrays to objects of every token and class; packed rows to buckets and to one rectangle.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from minidist.data.batching import MicroBatch, pack
from minidist.models.activations import fuse_gelu
from minidist.models.forward import hidden_states, padded_layout
from minidist.types import Row

RESULTS = Path("runs/bench/kernels.json")
ROUNDS = 5


def main() -> None:
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "TORCHDYNAMO_DISABLE": "1"}
    found: dict[str, Any] = {"sampler": [], "layout": [], "likely_classes": likely_classes()}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for vocabulary in (50_257, 151_936):
            for rows in (32, 128):
                found["sampler"].append({"threads": threads} | sampler(vocabulary, rows))
                print(found["sampler"][-1], flush=True)
    found["layout"] = layouts()
    print(found["likely_classes"], found["layout"], sep="\n")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(f"result: {RESULTS}")


def in_turn(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The least milliseconds of each way over rounds in which they alternate; the first round is not counted."""
    least = dict.fromkeys(ways, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            if turn:
                least[name] = min(least[name], 1e3 * (time.perf_counter() - began))
    return {name: round(milliseconds, 3) for name, milliseconds in least.items()}


def sampler(vocabulary: int, rows: int) -> dict[str, float]:
    """Milliseconds of the softmax, of softmax, draw and the drawn class's log-probability, and of vLLM's sampler."""
    from vllm.v1.sample.ops.topk_topp_sampler import random_sample

    from minidist.rollout.vllm.sampler import draw, uniform

    logits_BV = 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))
    generators = {row: torch.Generator().manual_seed(row) for row in range(rows)}

    def inverse() -> None:
        probabilities_BV = logits_BV.softmax(-1)
        ids_B = draw(probabilities_BV, uniform(rows, generators))
        probabilities_BV.gather(1, ids_B[:, None]).log_()

    def exponential() -> None:
        ids_B = random_sample(logits_BV.softmax(-1), generators)
        logits_BV.log_softmax(-1).gather(1, ids_B[:, None])

    took = in_turn({"softmax": lambda: logits_BV.softmax(-1), "minidist": inverse, "vllm": exponential})
    ratios = {f"{way}_to_softmax": round(took[way] / took["softmax"], 2) for way in ("minidist", "vllm")}
    return {"vocabulary": vocabulary, "rows": rows} | took | ratios


def likely_classes(tokens: int = 2000, classes: int = 64) -> dict[str, float]:
    """Microseconds a token of 64 likely classes: vLLM's tensors as arrays, and as its dictionaries of objects."""
    from vllm.logprobs import Logprob
    from vllm.v1.outputs import LogprobsTensors

    ids = torch.randint(0, 50_257, (tokens, classes + 1), dtype=torch.int32)
    tensors = LogprobsTensors(ids, torch.rand(tokens, classes + 1), torch.zeros(tokens, dtype=torch.int64))

    def objects() -> None:
        rows = zip(tensors.logprob_token_ids.tolist(), tensors.logprobs.tolist(), strict=True)
        [{index: Logprob(value) for index, value in zip(*row, strict=True)} for row in rows]

    def arrays() -> None:
        tensors.logprob_token_ids.numpy().astype(np.int32), tensors.logprobs.numpy().astype(np.float32)

    took = in_turn({"arrays": arrays, "objects": objects})
    return {name: round(1e3 * milliseconds / tokens, 2) for name, milliseconds in took.items()}


def layouts() -> dict[str, float]:
    """Milliseconds of a teacher's hidden states of 32 ragged rows, without the head, and the padding share of each layout."""
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=50_257, n_embd=512, n_layer=8, n_head=8, n_positions=512)
    model = GPT2LMHeadModel(shape).eval()
    fuse_gelu(model)
    assert not padded_layout("auto", model)
    rng = np.random.default_rng(0)
    lengths = [(int(np.clip(rng.lognormal(3.6, 0.7), 10, 128)), int(min(128, rng.geometric(1 / 50)))) for _ in range(32)]
    rows = [
        Row(tokens, np.arange(prompt - 1, len(tokens) - 1), tokens[prompt:])
        for prompt, answer in lengths
        for tokens in [rng.integers(0, 50_257, prompt + answer)]
    ]

    @torch.no_grad()
    def states(micros: list[MicroBatch], padded: bool) -> None:
        for micro in micros:
            hidden_states(model, micro, padded=padded)

    (rectangle,) = pack(rows, budget=1 << 20, padded=False)
    took = in_turn(
        {
            "packed": lambda: states(pack(rows, budget=4096, padded=False), False),
            "buckets": lambda: states(pack(rows, budget=4096, padded=True), True),
            "rectangle": lambda: states([rectangle], True),
        }
    )
    longest = max(map(sum, lengths))
    tokens = sum(map(sum, lengths))
    return took | {"tokens": tokens, "rectangle_padding": round(1 - tokens / (longest * len(rows)), 3)}


if __name__ == "__main__":
    main()
