"""A sample of tests/soak/test_accepted.py: what `minidist check` accepts, runs."""

from pathlib import Path

import pytest

from tests.support.accepted import refusal_or_run


@pytest.mark.parametrize(
    ("family", "backend", "engine", "payload", "residency"),
    [
        ("gpt2", "deepspeed", "vllm", "top_k", True),
        ("olmo2", "deepspeed", "vllm", "hidden", False),
        ("qwen3_moe", "single", "hf", "hidden", True),
        ("gemma2", "single", "vllm", "hidden", False),
        ("opt", "deepspeed", "hf", "top_k", False),
    ],
)
def test_what_check_accepts_runs(tmp_path: Path, family: str, backend: str, engine: str, payload: str, residency: bool) -> None:
    assert refusal_or_run(tmp_path, family, backend=backend, engine=engine, payload=payload, residency=residency) is None


def test_what_check_refuses_is_one_sentence(tmp_path: Path) -> None:
    sentence = refusal_or_run(tmp_path, "gpt_neox", backend="single", engine="vllm", payload="hidden")
    assert sentence is not None and "gpt_neox" in sentence and "rollout.engine=hf" in sentence
