"""Configurations and their sections as YAML files give them, and the sentences that refuse them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from minidist.config import load
from minidist.config.objective import ObjectiveSection
from minidist.config.objectives import ObjectiveConfig
from minidist.config.teacher import AnyTeacherConfig, TeacherConfig
from minidist.errors import ConfigError
from minidist.losses import objectives
from minidist.losses.targets import Objective

TREES: dict[str, dict[str, Any]] = {
    "sft": {
        "stage": "sft",
        "run": {"directory": "runs/sft"},
        "student": {"architecture": {"model_type": "llama"}, "tokenizer": "characters:sort"},
        "data": {"train": {"path": "task:sort"}, "validation": {"path": "task:sort", "split": "valid"}},
    },
    "distill": {
        "stage": "distill",
        "run": {"directory": "runs/distill"},
        "student": {"model": "runs/sft/final"},
        "teacher": {"model": "runs/teacher/final"},
        "data": {"prompts": {"path": "task:sort"}},
        "objective": {"type": "reverse_kl"},
    },
    "teach": {
        "stage": "teach",
        "run": {"directory": "runs/teach"},
        "task": {"glue": "sst2"},
        "student": {"model": "runs/student"},
        "data": {"train": {"path": "train.jsonl"}},
    },
    "evaluate": {
        "stage": "evaluate",
        "run": {"directory": "runs/evaluate"},
        "models": {"sft": "runs/sft/final"},
        "teacher": {"model": "runs/teacher/final"},
        "data": {"test": {"path": "task:sort", "split": "test"}},
    },
    "score": {
        "stage": "score",
        "run": {"directory": "runs/score"},
        "student": {"model": "runs/sft/final"},
        "teacher": {"model": "runs/teacher/final"},
        "data": {"sources": {"gold": {"path": "task:sort"}}},
        "cache": "runs/cache",
    },
}
"""The smallest configuration of each stage."""


def objective_config(type: str, **options: Any) -> ObjectiveSection:
    return TypeAdapter[Any](ObjectiveConfig).validate_python({"type": type, **options})


def make_objective(type: str, **options: Any) -> Objective:
    return objectives.make_objective(objective_config(type, **options))


def teacher_config(**fields: Any) -> Any:
    return TypeAdapter[TeacherConfig](AnyTeacherConfig).validate_python(fields)


def write_stage(directory: Path, stage: str) -> Path:
    """A file with the smallest configuration of a stage."""
    file = directory / f"{stage}.yaml"
    file.write_text(yaml.safe_dump(TREES[stage]))
    return file


def load_stage(directory: Path, stage: str, *overrides: str) -> Any:
    """The smallest configuration of a stage, with overrides."""
    return load(write_stage(directory, stage), overrides)


def refusal(path: Path, *overrides: str) -> str:
    """The sentence that refuses a configuration; it names the file or the override."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(path) in sentence or "override" in sentence
    return sentence


def assert_refused(directory: Path, stage: str, overrides: Sequence[str], parts: Sequence[str]) -> str:
    """The sentence, with these parts, in which the smallest configuration of a stage is refused with these overrides."""
    sentence = refusal(write_stage(directory, stage), *overrides)
    assert [part for part in parts if part not in sentence] == [], sentence
    return sentence
