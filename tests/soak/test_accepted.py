"""Slow: what `minidist check` accepts, runs two steps, for every family and setting."""

from itertools import product
from pathlib import Path

import pytest

from tests.support.accepted import refusal_or_run
from tests.support.families import FAMILIES

SETTINGS = list(product(("deepspeed", "single"), ("vllm", "hf"), ("hidden", "top_k")))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("backend", "engine", "payload"), SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_check_accepts_runs(tmp_path: Path, family: str, backend: str, engine: str, payload: str) -> None:
    sentence = refusal_or_run(tmp_path, family, backend=backend, engine=engine, payload=payload)
    if sentence is not None and engine == "hf":
        assert "student.model" in sentence, "in transformers a family is refused by name or not at all"
