"""Errors of a configuration as one sentence: the key, its value, the expectation, and the closest name."""

from pathlib import Path

import pytest
import yaml

from tests.support.config import TREES, assert_refused, refusal, write_stage

REFUSED = [
    ("sft", ["run.stepz=3"], ["unknown key run.stepz", "did you mean steps?"]),
    ("sft", ["learner.optimizer.learning_rates=1"], ["unknown key learner.optimizer.learning_rates"]),
    ("sft", ["learner.optimizer.warmup_step=1"], ["did you mean warmup_steps?"]),
    ("sft", ["lerner.chunk_tokens=3"], ["unknown key lerner", "did you mean learner?"]),
    ("sft", ["data.validation.promt=x"], ["unknown key data.validation.promt", "did you mean prompt?"]),
    ("sft", ["run.stepz=3", "run.sede=3"], ["run.stepz", "(and 1 more)"]),
    ("sft", ["run.steps=0"], ["run.steps is 0", "greater than or equal to 1"]),
    ("sft", ["run.steps=many"], ["run.steps is 'many'", "valid integer"]),
    ("sft", ["run.directory=null"], ["run.directory is None"]),
    ("sft", ["objective.type=reverse_kl"], ["unknown key objective"]),
    ("distill", ["objective.type=revers_kl"], ["objective.type is 'revers_kl'", "reverse_kl, forward_kl", "mean reverse_kl?"]),
    ("distill", ["objective.temperature=0"], ["objective", "temperature is 0", "greater than 0"]),
    ("distill", ["objective.temprature=2"], ["temprature", "did you mean temperature?"]),
    ("distill", ["objective=null"], ["objective is None"]),
    ("evaluate", ["seeds=[]"], ["seeds is []", "at least 1"]),
    ("evaluate", ["seeds=[-1]"], ["greater than or equal to 0"]),
    ("evaluate", ["rollout.no_repeat_ngram_size=1"], ["rollout.no_repeat_ngram_size is 1", "greater than or equal to 2"]),
    ("evaluate", ["models={}"], ["models is {}", "at least 1"]),
    ("sft", ["run.seed=-1"], ["run.seed is -1", "greater than or equal to 0"]),
]


@pytest.mark.parametrize(("stage", "overrides", "parts"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_a_wrong_key_or_value_is_refused(tmp_path: Path, stage: str, overrides: list[str], parts: list[str]) -> None:
    assert_refused(tmp_path, stage, overrides, parts)


def test_suggestion_is_not_of_another_section(tmp_path: Path) -> None:
    assert "did you mean prompts" not in refusal(write_stage(tmp_path, "distill"), "data.validation={path: x, promt: y}")


@pytest.mark.parametrize(
    ("stage", "section"), [("sft", "run"), ("sft", "data"), ("distill", "teacher"), ("evaluate", "models")]
)
def test_missing_section_is_named(tmp_path: Path, stage: str, section: str) -> None:
    file = tmp_path / "part.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in TREES[stage].items() if key != section}))
    assert refusal(file).endswith(f"{section} is missing")
