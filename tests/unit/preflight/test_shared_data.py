"""Real rows through a real tokenizer; skipped, with the reason, where MINIDIST_DATA is not there."""

import os
from pathlib import Path

import pytest

from minidist.config import SftConfig, load
from minidist.preflight.plan import plan_sft

ROOT = Path(__file__).parents[3]
HOME = os.environ.get("MINIDIST_DATA")
pytestmark = pytest.mark.skipif(
    not (HOME and Path(HOME, "dolly").is_dir()), reason="MINIDIST_DATA does not name the shared data"
)


def test_the_dolly_recipe_reads_dolly_with_the_minimind_chat_template(tmp_path: Path) -> None:
    config = load(ROOT / "configs" / "recipes" / "dolly" / "student.yaml", [f"run.directory={tmp_path}", "data.train.rows=500"])
    assert isinstance(config, SftConfig)
    plan = plan_sft(config)
    assert plan.renderer.tokenizer.vocab_size == 6400
    assert len(plan.examples) == 500 and len(plan.validation_examples) == 200
    example = plan.examples[0]
    asked = plan.renderer.tokenizer.decode(example.tokens[: example.start])
    assert asked.startswith("<|im_start|>user\n") and "<|im_end|>\n<|im_start|>assistant\n" in asked
    assert example.answer[-1] == plan.renderer.eos == plan.renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert plan.renderer.eos not in example.answer[:-1]
    rollout = example.as_rollout()
    assert rollout.tokens.tolist() == example.answer.tolist() and rollout.labelled is None
    assert max(len(example.tokens) for example in plan.examples) <= config.data.max_tokens


def test_plain_text_becomes_pieces_of_the_context(tmp_path: Path) -> None:
    text = ["data.train.path=${MINIDIST_DATA}/lm/tinystories/valid.jsonl", "data.train.answer=null"]
    overrides = [*text, "data.train.text='{{ text }}'", f"run.directory={tmp_path}", "data.validation=null"]
    none = ["evaluation.every=null", "evaluation.patience=null"]
    plan = plan_sft(load(ROOT / "configs" / "recipes" / "dolly" / "student.yaml", [*overrides, *none]))
    assert len(plan.examples) > 300
    assert all(example.start == 1 and 2 <= len(example.tokens) <= 256 for example in plan.examples)
