"""The parameters of vLLM's requests."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from minidist.rollout.vllm.sampling import sampling_params
from minidist.types import Sampling


def test_every_field_of_sampling_reaches_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=dict))
    sampling = Sampling(max_new_tokens=7, temperature=0.7, top_p=0.9, no_repeat_ngram_size=3)
    fixed: dict[str, Any] = {"stop_token_ids": [5, 8], "ignore_eos": True, "detokenize": False}
    drawn = {"temperature": 0.7, "top_p": 0.9, "extra_args": {"no_repeat_ngram_size": 3}}
    assert sampling_params(sampling, (5, 8), seed=4) == fixed | drawn | {"max_tokens": 7, "seed": 4}
    assert sampling_params(sampling, (5, 8), max_tokens=1) == fixed | drawn | {"max_tokens": 1}
    assert "extra_args" not in sampling_params(Sampling(max_new_tokens=7), (5,))
