"""Roles made from their sections."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from minidist.config.models import ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.roles.make import RoleContext, make_engine
from minidist.types import Prompt, Sampling
from tests.support.tiny import tiny_model, tiny_renderer


@pytest.mark.parametrize(("dtype", "expected"), [(None, "torch.float32"), ("bfloat16", "torch.bfloat16")])
def test_an_engine_computes_in_its_own_precision(tmp_path: Path, dtype: str | None, expected: str) -> None:
    tiny_model().save_pretrained(tmp_path)
    rollout = RolloutConfig(engine="hf", dtype=dtype)  # type: ignore[arg-type]
    engine = make_engine(RoleContext(tiny_renderer()), ModelConfig(model=str(tmp_path)), rollout)
    assert str(engine._model.dtype) == expected  # type: ignore[attr-defined]
    prompts = [Prompt(0, np.array([1, 2], dtype=np.int32), "")]
    (rollout_of_one,) = asyncio.run(engine.generate(prompts, Sampling(max_new_tokens=4)))
    assert rollout_of_one.logprobs is not None and rollout_of_one.logprobs.dtype == np.float32
    asyncio.run(engine.close())
