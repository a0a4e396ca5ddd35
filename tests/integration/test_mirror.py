"""A run whose directory is lost goes on from its copy, with a model and rows that are at addresses too."""

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.conftest import SHAPE, save_model
from tests.integration.test_runs import sft, write
from tests.support.commands import run


def test_a_run_goes_on_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIDIST_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "model", SHAPE, 1)
    rows = [{"prompt": "cba=", "answer": "abc"}, {"prompt": "zyx=", "answer": "xyz"}] * 20
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = sft(tmp_path, "run", SHAPE, 40, 4, 1)
    config["run"] |= {"checkpoint_every": 2, "mirror": f"file://{tmp_path}/copy"}
    config["student"] = {"model": f"file://{tmp_path}/model"}
    config["data"] = {"train": {"path": f"file://{tmp_path}/rows.jsonl", "answer": "{{ answer }}"}, "max_tokens": 32}
    config["evaluation"] = {"every": None}
    file = write(tmp_path / "run.yaml", config)
    done = run("sft", file)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "run")
    done = run("sft", file, "run.steps=6")
    assert done.returncode == 0, done.stderr
    assert f"fetching the run from file://{tmp_path}/copy" in done.stderr
    assert "resuming from" in done.stderr
    lines = (tmp_path / "copy" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert (tmp_path / "copy" / "final" / "model.safetensors").is_file()
