"""Scenarios of three pairs of models on H100s: of 512 prompts x 8 answers, 512 + 4,096 tokens."""

from dataclasses import replace
from typing import Any

from minidist.models.shape import Shape
from minidist.preflight.forecast.rates import PUBLISHED
from minidist.preflight.forecast.scenario import Layout, Model, Paths, Scenario, Workload
from minidist.run.flops import DecoderFlops


def shape(parameters: float, layers: int, hidden: int, heads: int, kv_heads: int, vocabulary: int) -> Shape:
    """A decoder by its sizes; a token costs two operations a parameter, and attention nothing."""
    count = int(parameters)
    size = hidden // heads
    sizes = {"hidden": hidden, "heads": heads, "kv_heads": kv_heads, "head_size": size, "intermediate": 4 * hidden}
    cost = DecoderFlops(token=2 * parameters)
    return Shape(count, count, layers, vocabulary=vocabulary, flops=cost, **sizes)


PAIRS = {
    "0.5B": (shape(0.5e9, 24, 896, 14, 2, 151_936), shape(7.6e9, 28, 3584, 28, 4, 151_936)),
    "8B": (shape(8e9, 32, 4096, 32, 8, 128_256), shape(70e9, 80, 8192, 64, 8, 128_256)),
    "70B": (shape(70e9, 80, 8192, 64, 8, 128_256), shape(405e9, 126, 16_384, 128, 8, 128_256)),
}
"""Student and teacher."""
TODAY = Paths()
SPLITS = {"0.5B": (1, 1), "8B": (1, 4), "70B": (8, 16)}
"""Devices of an engine, and of a teacher."""


def scenario(name: str, dealt: tuple[int, int, int], paths: Paths = TODAY, *, hidden: bool = False, **layout: Any) -> Scenario:
    """A pair on devices dealt to engines, teachers and learner; scores are the top 64 classes, or hidden states."""
    student, teacher = (Model(each) for each in PAIRS[name])
    payload = 2 * teacher.shape.hidden if hidden else 516
    workload = Workload(512, 8, 512, 4096, payload, hidden=hidden, top_k=not hidden)
    split = dict(zip(("rollout_split", "teacher_split"), SPLITS[name], strict=True))
    return Scenario(student, teacher, workload, Layout(*dealt, **split | layout), PUBLISHED["h100"], paths)


def with_costs(found: Scenario, **costs: Any) -> Scenario:
    """The same with other overheads."""
    return replace(found, rates=replace(found.rates, overheads=replace(found.rates.overheads, **costs)))
