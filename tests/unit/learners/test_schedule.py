"""The learning rate over a run, and which parameters decay."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from minidist.config.learner import OptimizerConfig
from minidist.learners.schedule import learning_rate, make_optimizer
from tests.support.tiny import tiny_model

SCHEDULES = [
    ("constant", 0, [1, 1, 1, 1]),
    ("linear", 0, [1, 0.75, 0.5, 0.25]),
    ("cosine", 0, [1, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0.5 + 0.5 * math.cos(3 * math.pi / 4)]),
    ("constant", 2, [0.5, 1, 1, 1]),
    ("linear", 2, [0.5, 1, 1, 0.5]),
    ("cosine", 8, [1 / 8, 2 / 8, 3 / 8, 4 / 8]),
]


@pytest.mark.parametrize(("schedule", "warmup", "rates"), SCHEDULES)
def test_learning_rate(schedule: Any, warmup: int, rates: list[float]) -> None:
    config = OptimizerConfig(lr=0.1, schedule=schedule, warmup_steps=warmup)
    assert [learning_rate(config, at, 4) for at in range(4)] == pytest.approx([0.1 * rate for rate in rates])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_decay_is_for_matrices_alone(kind: str) -> None:
    model = tiny_model(kind)
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1), model.named_parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert groups[0.1] | groups[0.0] == set(names.values())
    assert not any("norm" in name or "bias" in name or "ln_" in name or "embed" in name for name in groups[0.1])
    assert {"wte", "wpe"} & {name.split(".")[-2] for name in groups[0.1]} == set()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_adamw_is_one_kernel_on_a_gpu(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr("torch.optim.AdamW", lambda groups, **options: made.append(options["fused"]))
    parameter: Any = SimpleNamespace(requires_grad=True, ndim=2, shape=(2, 2), is_cuda=on_gpu)
    make_optimizer(OptimizerConfig(), [("weight", parameter)])
    assert made == [True if on_gpu else None]
