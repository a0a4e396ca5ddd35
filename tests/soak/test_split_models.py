"""Slow: models that vLLM splits over two processes: scores, states, text and new weights are those of the whole model."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minidist.roles.make import RoleContext, make_teacher
from minidist.teachers.hf import HFTeacher
from minidist.types import Sampling, TeacherScores
from tests.support.config import teacher_config
from tests.support.families import family_model, saved_family
from tests.support.tiny import random_rollouts, tiny_renderer

EXACT = 2e-4  # nats; float32, two implementations of the same arithmetic
ROLLOUTS = random_rollouts([(3, 4), (1, 9), (6, 1), (2, 40), (8, 40), (47, 1)])


def context(**split: int) -> RoleContext:
    return RoleContext(tiny_renderer(), max_tokens=48, split=split)


def whole(path: Path, payload: str) -> list[TeacherScores]:
    """The scores of the model in transformers."""
    teacher = HFTeacher(teacher_config(model=str(path), payload=payload, top_k=99), tiny_renderer(), vocabulary=None)
    scores = asyncio.run(teacher.score(ROLLOUTS))
    asyncio.run(teacher.close())
    return scores


def largest(found: Any, expected: Any, field: str = "logprobs") -> float:
    """The largest difference between arrays of scores or rollouts."""
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(getattr(one, field) - getattr(two, field)).max()) for one, two in pairs)


@pytest.mark.timeout(300)
def test_a_model_in_two_stages_scores_writes_and_takes_new_weights_like_the_whole_one(tmp_path: Path) -> None:
    saved_family("llama", tmp_path / "old")
    (other := family_model("llama", seed=7)).save_pretrained(tmp_path / "new")
    old, new = whole(tmp_path / "old", "top_k"), whole(tmp_path / "new", "top_k")  # vLLM replaces classes of transformers
    config = teacher_config(model=str(tmp_path / "old"), backend="vllm", payload="top_k", top_k=99)
    teacher: Any = make_teacher(context(pipeline_parallel=2), config)
    assert largest(asyncio.run(teacher.score(ROLLOUTS)), old) < EXACT
    assert largest(asyncio.run(teacher.score(ROLLOUTS)), old, "top_logprobs") < EXACT
    written = asyncio.run(teacher.extend([each.prompt for each in ROLLOUTS[:3]], Sampling(samples=2, max_new_tokens=8, seed=3)))
    assert largest(asyncio.run(teacher.score(written)), written) < EXACT
    for _ in range(2):  # the second time in place
        asyncio.run(teacher._core.reload(list(other.state_dict().items())))
        assert largest(asyncio.run(teacher.score(ROLLOUTS)), new) < EXACT
    assert asyncio.run(teacher.describe())["pipeline_parallel"] == 2
    asyncio.run(teacher.close())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("by", ["tensor_parallel", "pipeline_parallel"])
def test_hidden_states_of_a_split_model_are_those_of_the_whole_one(tmp_path: Path, by: str) -> None:
    saved_family("qwen2", tmp_path)
    expected = whole(tmp_path, "hidden")
    teacher = make_teacher(context(**{by: 2}), teacher_config(model=str(tmp_path), backend="vllm"))
    assert largest(asyncio.run(teacher.score(ROLLOUTS)), expected, "hidden") < EXACT
    asyncio.run(teacher.close())
