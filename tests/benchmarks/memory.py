"""The learner's memory estimate against what a process really takes: `python -m tests.benchmarks.memory`.

A Llama of 30 M parameters takes two updates in plain torch; the growth of the peak resident memory, from before the model was
built, stands beside the estimate. Each case runs in a process of its own. Linux only (/proc).
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from tests.support.config import make_objective

CASES = {
    "supervised": ["supervised", "4096", "1024", "float32"],
    "reverse KL, hidden states": ["reverse_kl", "4096", "1024", "float32"],
    "reverse KL, larger chunks": ["reverse_kl", "4096", "4096", "float32"],
    "reverse KL, small micro-batch": ["reverse_kl", "1024", "512", "float32"],
    "reverse KL, bfloat16": ["reverse_kl", "4096", "1024", "bfloat16"],
}
_ROW = 256  # tokens
_SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 8192}


def main() -> None:
    print(f"{'MiB; ratio = estimate / measured':<34}{'as it is':>20}{'ratio':>7}   {'allocator holds nothing':>24}{'ratio':>7}")
    for name, case in CASES.items():
        line = f"{name:<34}"
        for settings, width in (({}, 20), ({"MALLOC_MMAP_THRESHOLD_": "1048576"}, 27)):
            command = [sys.executable, "-m", __spec__.name, *case]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | settings)
            measured, *estimates = map(float, done.stdout.split())
            estimate = estimates[bool(settings)]
            line += f"{f'{measured:.0f} / {estimate:.0f}':>{width}}{estimate / measured:>7.2f}"
        print(line, flush=True)


def measure(objective: str, budget: int, chunk: int, dtype: str) -> tuple[float, float, float]:
    """Peak growth, and its estimate with and without what the allocator holds, all without the libraries' part, MiB."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from minidist.config.learner import LearnerConfig
    from minidist.data.batching import collate
    from minidist.losses.chunked import LinearHead
    from minidist.models.shape import read_shape
    from minidist.preflight.memory import ALLOCATOR_SHARE, PROCESS_BYTES, TrainedModel, learner_need
    from minidist.types import Batch, Payload, TeacherScores
    from tests.support.learners import local_learner
    from tests.support.tiny import random_rollouts

    supervised = objective == "supervised"
    model_config = LlamaConfig(**_SHAPE)
    rollouts = random_rollouts([(16, _ROW - 16)] * (2 * budget // _ROW), vocabulary=8192)
    config = LearnerConfig(backend="single", micro_batch_tokens=budget, chunk_tokens=chunk)
    _warm_up()
    before = _resident("VmRSS")

    head = torch.randn(8192, 512, dtype=getattr(torch, dtype))
    model = AutoModelForCausalLM.from_config(model_config, dtype=getattr(torch, dtype)).eval()
    hidden = np.random.default_rng(0).standard_normal((_ROW - 16, 512), np.float32)
    scores = None if supervised else TeacherScores(Payload.HIDDEN, hidden=hidden)  # one array for all rows: it is not measured
    batch = Batch(0, ((collate("text", rollouts, [scores] * len(rollouts), objective="text"),),))  # type: ignore[list-item]
    teacher = None if supervised else LinearHead(head)
    learner = local_learner(model, config, {"text": make_objective(objective)}, steps=2, teacher=teacher)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    for _ in range(2):  # the optimizer's state is there from the second on
        asyncio.run(learner.update(batch))
    trained = TrainedModel(read_shape(model_config), config, dtype, ranks=1, tokens=budget, gpu=False)
    need = learner_need(trained, teacher_head=None if supervised else head.nbytes)
    estimate = (need.total - PROCESS_BYTES) / 2**20
    return _resident("VmHWM") - before, estimate, estimate - ALLOCATOR_SHARE * need.parts["activations"] / 2**20


def _warm_up() -> None:
    """What the first forward and backward pass of a process loads is no part of the model."""
    import torch

    layer = torch.nn.Linear(256, 256)
    layer(torch.randn(256, 256)).log_softmax(-1).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()


def _resident(field: str) -> float:
    """A line of /proc/self/status, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
    else:
        main()
