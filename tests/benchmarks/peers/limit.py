"""The least time of a step: its multiply-adds at the rate of the machine's matrix products.

Only useful tokens count: no padding, and the lower triangle of attention. Per answer of T tokens after a prompt of P tokens,
the body reads the P + T - 1 tokens that predict something, and the heads write T distributions:

- generate: the student, each token once;
- score: the teacher, body and head;
- update: the student's forward pass, and a backward pass of twice its cost.

A multiply-add counts as two operations, as FlopCounterMode counts it. Element-wise work (softmax, norms, the divergence) is not
counted.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from minidist.models.shape import skeleton

FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class Cost:
    """What a model's forward pass costs. `body`: elements of the layers' matrices; `attention`: heads × head size, summed over
    the layers; `head`: elements of the output head."""

    body: int
    attention: int
    head: int

    def forward(self, tokens: int, labels: int) -> int:
        """Operations on one sequence of `tokens`, of which `labels` get a distribution over the vocabulary."""
        pairs = tokens * (tokens + 1) // 2  # of a query and a key that it sees
        return 2 * (self.body * tokens + 2 * self.attention * pairs + self.head * labels)


def cost_of(config: PretrainedConfig) -> Cost:
    """The cost of a causal language model, from its configuration."""
    model: Any = skeleton(config)
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    matrices = [
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and id(parameter) not in ends and "wpe" not in name
    ]
    text = config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = text.num_hidden_layers * text.num_attention_heads * head_size
    return Cost(sum(matrices), attention, text.vocab_size * text.hidden_size)


@dataclass(frozen=True)
class StepOperations:
    """Floating-point operations of one step, by phase."""

    generate: int
    score: int
    update: int

    @property
    def total(self) -> int:
        return self.generate + self.score + self.update


def step_operations(student: Cost, teacher: Cost, lengths: Sequence[tuple[int, int]]) -> StepOperations:
    """`lengths`: tokens of prompt and answer of each row."""
    rows = [(prompt + answer - 1, answer) for prompt, answer in lengths if answer]
    generate = sum(student.forward(*row) for row in rows)
    score = sum(teacher.forward(*row) for row in rows)
    return StepOperations(generate, score, FORWARD_AND_BACKWARD * generate)


def costs(student: Path, teacher: Path) -> tuple[Cost, Cost]:
    """Of two models in directories."""
    first, second = (cost_of(AutoConfig.from_pretrained(path)) for path in (student, teacher))
    return first, second


def product_rate(dtype: str, *, size: int = 2048, repeats: int = 9) -> float:
    """Operations a second of products [size, size] @ [size, size] on all cores of this machine; the median of `repeats`."""
    left, right = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[2:])


def has_native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself, rather than by conversion to float32."""
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags
