"""The limits of a vLLM engine, which the engine is started with and the memory plan counts with."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minidist.config.rollout import RolloutConfig
    from minidist.config.teacher import LocalTeacherConfig

GPU_TOKENS, CPU_TOKENS = 8192, 4096
"""Tokens of a forward pass where a configuration names none: vLLM's own 2,048 leave a large GPU idle while it reads prompts."""
GPU_SEQUENCES, CPU_SEQUENCES = 512, 256
"""Sequences where a configuration names none. Up to 512, vLLM replays a step as one CUDA graph."""


@dataclass(frozen=True)
class EngineLimits:
    """The most that one forward pass of an engine computes.

    Args:
        tokens: of all sequences together.
        sequences: that are written at one time.
    """

    tokens: int
    sequences: int


def engine_limits(
    config: "RolloutConfig | LocalTeacherConfig", *, longest: int, on_gpu: bool, pooling: bool = False
) -> EngineLimits:
    """The limits of an engine whose longest sequence is `longest` tokens; `pooling`: it gives hidden states.

    On a CPU a prompt is never split over two passes, since vLLM then draws one token too many. It undoes the draw by rewinding
    the request's generator, which a CPU generator cannot do. Nor is the text of a pooling engine split: the states of its first
    part would stay on the device until the last one is read, and be given twice if the text were put off in between.
    """
    sequences = config.max_sequences or (GPU_SEQUENCES if on_gpu else CPU_SEQUENCES)
    tokens = config.batch_tokens or (GPU_TOKENS if on_gpu else CPU_TOKENS)
    return EngineLimits(max(tokens, sequences, longest if pooling or not on_gpu else 0), sequences)
