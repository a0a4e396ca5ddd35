"""A run's directory as an object: data frames, the model, a table for notebooks; and sentences for what cannot be read."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
from transformers import PreTrainedModel

import minidist
from minidist.config import CONFIGS, DistillConfig, SftConfig, dump
from minidist.errors import DataError, RunDirectoryError
from tests.support.config import TREES
from tests.unit.test_imports import HEAVY, loaded_by

STEPS: list[dict[str, Any]] = [
    {"step": -1, "evaluation/accuracy": 0.25, "evaluation/accuracy_se": 0.1},
    {"step": 0, "loss/nats_per_token": 2.0},
    {"step": 1, "loss/nats_per_token": 1.0},
    {"step": 1, "evaluation/accuracy": 0.75},
]


@pytest.fixture
def distilled(tmp_path: Path) -> Path:
    """The directory of a distillation that goes on, with answers of its second step."""
    tree = TREES["distill"] | {"run": {"directory": str(tmp_path / "run"), "steps": 9}, "teacher": {"model": "<b>large</b>"}}
    (tmp_path / "run/rollouts").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps(dump(DistillConfig.model_validate(tree))))
    lines = "".join(json.dumps(line) + "\n" for line in STEPS)
    (tmp_path / "run/metrics.jsonl").write_text(lines + '{"step": 2, "loss/na')
    row = {
        "prompt": "2+2=",
        "answer": "4",
        "finish": "stop",
        "tokens": [1],
        "student_logprobs": [-0.5],
        "teacher_logprobs": None,
    }
    (tmp_path / "run/rollouts/step_000002.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path / "run"


def test_importing_and_naming_is_light() -> None:
    modules, seconds = loaded_by("-c", "import minidist; assert callable(minidist.run)")
    assert "minidist" in modules and not modules & {*HEAVY, "pandas", "pydantic", "numpy"}
    assert seconds < 1
    modules, _ = loaded_by("-c", "import minidist; minidist.open_run; from minidist.run.directory import RunDirectory")
    assert "pydantic" in modules and not modules & {*HEAVY, "pandas"}


def test_the_package_and_the_function_share_a_name() -> None:
    code = (
        "import minidist; import minidist.run.files as files; from minidist.run import directory; print(callable(minidist.run))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        minidist.runn  # noqa: B018


def test_metrics_are_one_row_a_step(distilled: Path) -> None:
    found = minidist.open_run(distilled).metrics
    assert isinstance(found, pandas.DataFrame) and found.index.name == "step"
    assert list(found.index) == [-1, 0, 1]
    assert found.loc[1, "loss/nats_per_token"] == 1.0 and found.loc[1, "evaluation/accuracy"] == 0.75


def test_evaluations_are_by_the_steps_before_them(distilled: Path) -> None:
    found = minidist.open_run(distilled).evaluations
    assert found.index.name == "steps" and dict(found["accuracy"]) == {0: 0.25, 2: 0.75}


def test_a_run_that_goes_on_shows_how_far_it_is(distilled: Path) -> None:
    opened = minidist.open_run(distilled)
    assert opened.summary is None and isinstance(opened.config, DistillConfig)
    assert repr(opened) == f"<minidist run {distilled}: distill, not finished>"
    with (distilled / "metrics.jsonl").open("a") as file:
        file.write('ts": 0.5}\n')
    assert list(opened.metrics.index) == [-1, 0, 1, 2]


def test_rollouts_are_rows(distilled: Path) -> None:
    opened = minidist.open_run(str(distilled))
    assert list(opened.rollouts()["answer"]) == ["4"] and opened.rollouts(2).loc[0, "student_logprobs"] == [-0.5]
    with pytest.raises(DataError, match="has no rollouts of step 7; it has 2"):
        opened.rollouts(7)


def test_a_notebook_shows_a_table_of_text(distilled: Path) -> None:
    page = minidist.open_run(distilled)._repr_html_()
    assert "<td>2 of 9</td>" in page and "<th>objective</th><td>reverse_kl</td>" in page
    assert "accuracy 0.75" in page and "&lt;b&gt;large&lt;/b&gt;" in page and "<b>" not in page


def test_a_finished_run_has_its_model(trained: Path) -> None:
    opened = minidist.open_run(trained)
    assert isinstance(opened.config, SftConfig)
    assert opened.summary is not None and opened.summary["steps"] == 4
    assert isinstance(opened.model(), PreTrainedModel) and opened.tokenizer()("1=")["input_ids"]
    assert list(opened.evaluations.index) == [2, 4] and "loss_nats_per_token" in opened.evaluations
    assert "<td>finished</td>" in opened._repr_html_() and opened.final == trained / "final"


def test_a_comparison_has_its_records(tmp_path: Path) -> None:
    tree = {"stage": "evaluate", "run": {"directory": str(tmp_path)}} | {
        key: value for key, value in TREES["evaluate"].items() if key not in ("stage", "run")
    }
    (tmp_path / "config.json").write_text(json.dumps(dump(CONFIGS["evaluate"].model_validate(tree))))
    (tmp_path / "summary.json").write_text(json.dumps({"result": {"sft": {"accuracy": 0.5}, "teacher": {"accuracy": 1.0}}}))
    assert dict(minidist.open_run(tmp_path).evaluations["accuracy"]) == {"sft": 0.5, "teacher": 1.0}
    (tmp_path / "compare.json").write_text(json.dumps([{"objective": "jsd", "seed": 0, "accuracy": 0.7}]))
    assert list(minidist.open_run(tmp_path).evaluations["objective"]) == ["jsd"]


def test_what_is_no_run_is_refused_with_a_sentence(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run directory at"):
        minidist.open_run(tmp_path / "nothing")
    with pytest.raises(RunDirectoryError, match=r"config.json is missing"):
        minidist.open_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"stage": "dance", "run": {}}))
    with pytest.raises(RunDirectoryError, match="stage 'dance'"):
        minidist.open_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"stage": "sft", "run": {}}))
    with pytest.raises(RunDirectoryError, match=r"is not one of this version's"):
        minidist.open_run(tmp_path)
    broken = shutil.copytree(trained, tmp_path / "broken")
    for text in ("{\n", "[]\n", '{"a": 1}\n'):
        (broken / "metrics.jsonl").write_text(text)
        with pytest.raises(RunDirectoryError, match=r"metrics.jsonl"):
            _ = minidist.open_run(broken).metrics


def test_a_run_without_a_model_says_so(distilled: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds no final/"):
        minidist.open_run(distilled).model()
