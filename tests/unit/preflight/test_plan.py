"""Plans: what a run will be, from its files alone."""

from types import SimpleNamespace
from typing import Any

from minidist.config import DistillConfig
from minidist.preflight.plan import _soft_prompt_lines
from tests.support.tiny import tiny_renderer

TREE: dict[str, Any] = {
    "stage": "distill",
    "run": {"directory": "run"},
    "student": {"model": "s"},
    "teacher": {"model": "t", "placement": "learner", "prompt": {}},
    "data": {"prompts": {"path": "task:sort"}},
    "objective": {"type": "reverse_kl"},
}


def soft_prompt_lines(**sections: Any) -> list[str]:
    models: Any = SimpleNamespace(teacher=SimpleNamespace(context=2048))
    return _soft_prompt_lines(DistillConfig.model_validate(TREE | sections), models, tiny_renderer())


def test_a_soft_prompt_is_a_line_of_the_plan() -> None:
    assert soft_prompt_lines(teacher={"model": "t"}) == []
    [line] = soft_prompt_lines()
    assert "7 virtual tokens" in line and "whole frozen copy" in line and "evaluation" not in line
    watched = {"data": TREE["data"] | {"validation": {"path": "task:sort", "split": "valid"}}, "evaluation": {"every": 5}}
    assert soft_prompt_lines(**watched)[0].endswith("distance to the teacher without them")
