"""Slow: every row of Dolly through the recipe's tokenizer and chat template."""

import os
from pathlib import Path

import pytest

from minidist.config import SftConfig, load
from minidist.preflight.plan import plan_sft

RECIPE = Path(__file__).parents[2] / "configs" / "recipes" / "dolly" / "student.yaml"
HOME = os.environ.get("MINIDIST_DATA")


@pytest.mark.skipif(not (HOME and Path(HOME, "dolly").is_dir()), reason="MINIDIST_DATA does not name the shared data")
def test_the_dolly_recipe_uses_more_than_8000_rows(tmp_path: Path) -> None:
    config = load(RECIPE, [f"run.directory={tmp_path}"])
    assert isinstance(config, SftConfig)
    plan = plan_sft(config)
    assert len(plan.examples) > 8000
    assert max(len(example.tokens) for example in plan.examples) <= config.data.max_tokens
