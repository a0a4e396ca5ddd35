"""`minidist plan`: what it prints, its rates, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from minidist import cli
from minidist.preflight.forecast import report
from minidist.preflight.forecast.rates import PUBLISHED, read_rates
from tests.support.config import TREES, load_stage
from tests.support.tiny import save_pair


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distillation of tiny models."""
    root = tmp_path_factory.mktemp("plan")
    save_pair(root)
    rows = [{"prompt": f"{row % 10}="} for row in range(32)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree: dict[str, Any] = TREES["distill"] | {
        "run": {"directory": str(root / "run")},
        "student": {"model": str(root / "student")},
        "teacher": {"model": str(root / "teacher")},
        "data": {"prompts": {"path": str(root / "rows.jsonl"), "prompt": "{{ prompt }}"}, "max_prompt_tokens": 64},
        "rollout": {"engine": "hf", "prompts_per_step": 8, "max_new_tokens": 16},
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return root / "tiny.yaml"


def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """What `minidist plan ARGUMENTS` prints, and the sentence with which it ends."""
    monkeypatch.setattr("sys.argv", ["minidist", "plan", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_a_plan_shows_phases_bytes_memory_and_advice(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, errors = plan(monkeypatch, capsys, str(file), "cluster.gpus=8", "--answer-tokens", "9")
    assert errors == ""
    parts = ("rates: h100", "8 prompts x 1, 2 + 9 tokens", "1 rollout, 1 teacher, 1 learner", "generate", "update", "publish")
    parts += (
        "scores",
        "memory, GiB a device",
        "79.6",
        "the same 8 devices",
        "the loop in virtual time: ",
        "stale",
        "advice: ",
        "cluster.learner.ranks=",
    )
    assert [part for part in (*parts, "teacher.payload=hidden") if part not in shown] == []


def test_a_plan_names_what_it_leaves_out(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, _ = plan(monkeypatch, capsys, str(file), "cluster.gpus=8")
    assert "not in these seconds" not in shown
    shown, _ = plan(monkeypatch, capsys, str(file), "cluster.gpus=8", "rollout.teacher_mix=0.2")
    assert "not in these seconds: the teacher's turns in mixed sampling" in shown


def test_other_devices_take_other_times(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, _ = plan(monkeypatch, capsys, str(file), "cluster.gpus=8", "--rates", "a100")
    assert "rates: a100" in shown and "312 TFLOP/s" in shown


def test_a_machine_without_measured_rates_is_told_to_measure(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "DEFAULT_FILE", tmp_path / "rates.json")
    _, error = plan(monkeypatch, capsys, str(file))
    assert "run `minidist plan --measure` once" in error
    PUBLISHED["h100"].write(tmp_path / "rates.json")
    shown, error = plan(monkeypatch, capsys, str(file))
    assert (
        error == ""
        and "colocated" in shown
        and "memory of all processes: " in shown
        and "all roles and the object store" in shown
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rates", "b9000"], "--rates is b9000; expected h100, a100, or a file"),
        (["--answer-tokens", "17"], "--answer-tokens is 17; expected a length up to rollout.max_new_tokens = 16"),
        (["--rates", "{file}"], "tiny.yaml is no file of rates"),
    ],
)
def test_what_cannot_be_forecast_is_one_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    filled = [argument.format(file=file) for argument in arguments]
    _, error = plan(monkeypatch, capsys, str(file), "cluster.gpus=3", *filled)
    assert sentence in error and len(error.splitlines()) == 1


def test_a_configuration_of_another_verb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(TREES["sft"]))
    assert (
        "a configuration for `minidist sft`; plan needs one of distill"
        in plan(monkeypatch, capsys, str(tmp_path / "sft.yaml"))[1]
    )
    assert "needs a configuration of `minidist distill`, or --measure" in plan(monkeypatch, capsys)[1]


def test_memory_is_that_of_the_micro_batches_that_a_step_fills(tmp_path: Path) -> None:
    config = load_stage(tmp_path, "distill", "learner.micro_batch_tokens=4096", "teacher.batch_tokens=500")
    used = report.with_used_budgets(config, 1920)
    assert (used.learner.micro_batch_tokens, used.teacher.batch_tokens) == (1920, 500)  # type: ignore[union-attr]
    assert report.with_used_budgets(config, 5000) == config


def test_rates_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    PUBLISHED["h100"].write(tmp_path / "rates.json")
    assert read_rates(str(tmp_path / "rates.json")) == PUBLISHED["h100"]
