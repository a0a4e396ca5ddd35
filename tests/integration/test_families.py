"""A few families in vLLM: experts that a CPU packs, a tied head that vLLM refuses, and a model that transformers computes."""

import pytest

from tests.support.family_table import cell_in_process


@pytest.mark.parametrize(
    ("family", "column"),
    [("qwen3_moe", "vLLM"), ("gemma2", "vLLM"), ("olmo2", "mixed by turns")],
    ids=str,
)
def test_a_family_in_vllm(family: str, column: str) -> None:
    assert cell_in_process(family, column) == "yes"
