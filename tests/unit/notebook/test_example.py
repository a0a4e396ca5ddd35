"""The notebook of README.md runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import pandas
import pytest
from transformers import PreTrainedModel

from tests.unit.notebook.test_start import ROOT


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    [code] = re.findall(r"## In a notebook\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert isinstance(names["model"], PreTrainedModel) and names["tokenizer"]("ab")["input_ids"]
    metrics = names["run"].metrics
    assert isinstance(metrics, pandas.DataFrame) and len(metrics) == 100
    assert metrics["loss/nats_per_token"].iloc[-10:].mean() < metrics["loss/nats_per_token"].iloc[:10].mean()
    assert list(names["run"].evaluations.index) == [50, 100]
