"""Plans: what a run will be, from its files alone."""

from types import SimpleNamespace
from typing import Any

from minidist.config import DistillConfig
from minidist.preflight.lines import distillation_lines
from minidist.preflight.teachers import TeacherFacts, teacher_lines
from minidist.types import Vocabulary
from tests.support.tiny import random_rollouts, tiny_renderer

TREE: dict[str, Any] = {
    "stage": "distill",
    "run": {"directory": "run"},
    "student": {"model": "s"},
    "teacher": {"model": "t", "placement": "learner", "prompt": {}},
    "data": {"prompts": {"path": "task:sort"}},
    "objective": {"type": "reverse_kl"},
}


def soft_prompt_lines(**sections: Any) -> list[str]:
    models: Any = SimpleNamespace(teacher=SimpleNamespace(context=2048, rows=8), vocabulary=Vocabulary(8))
    config, prompt = DistillConfig.model_validate(TREE | sections), random_rollouts([(3, 4)])[0].prompt
    return teacher_lines(TeacherFacts(config, models, tiny_renderer(), prompt, tokens=47))


def test_a_soft_prompt_is_a_line_of_the_plan() -> None:
    assert soft_prompt_lines(teacher={"model": "t"}) == []
    [line] = soft_prompt_lines()
    assert "the teacher is trained too: 7 virtual tokens" in line and "whole frozen copy" in line and "evaluation" not in line
    watched = {"data": TREE["data"] | {"validation": {"path": "task:sort", "split": "valid"}}, "evaluation": {"every": 5}}
    assert soft_prompt_lines(**watched)[0].endswith("distance to the teacher without them")


def test_text_written_ahead_is_a_line_of_the_plan() -> None:
    plain, ahead = (
        distillation_lines(DistillConfig.model_validate(TREE | {"loop": {"max_staleness": most, "ratio_max": 1.5}}))
        for most in (0, 2)
    )
    assert ahead[: len(plain)] == plain
    [line] = ahead[len(plain) :]
    assert "up to 2 collections written ahead" in line and "importance ratios of at most 1.5" in line
