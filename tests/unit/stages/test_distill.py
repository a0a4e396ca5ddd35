"""Distillation in this process: its canaries and evaluations where answers are not drawn at temperature 1."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import minidist.rollout.hf as hf
from minidist.config import DistillConfig, EvaluateConfig
from minidist.errors import CanaryError
from minidist.preflight.plan import plan_distill, plan_evaluate
from minidist.stages import run_stage
from minidist.types import Sampling
from tests.support.tiny import tiny_model, tiny_renderer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distill")
    for seed, name in enumerate(("student", "teacher")):
        tiny_model(seed=seed).save_pretrained(root / name)
        tiny_renderer().tokenizer.save_pretrained(root / name)
    (root / "rows.jsonl").write_text("".join(json.dumps({"q": f"{n}+=", "a": str(n)}) + "\n" for n in range(8)))
    return root


def config(home: Path, name: str, **sections: Any) -> DistillConfig:
    source = {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}"}
    tree: dict[str, Any] = {
        "stage": "distill",
        "run": {"directory": str(home / name), "steps": 1},
        "student": {"model": str(home / "student")},
        "teacher": {"model": str(home / "teacher")},
        "data": {"prompts": source, "validation": source, "max_prompt_tokens": 8},
        "objective": {"type": "forward_kl"},
        "learner": {"backend": "single"},
        "cluster": {"roles": "local", "threads": 1},
    }
    rollout = {"engine": "hf", "prompts_per_step": 4, "max_new_tokens": 6} | sections.pop("rollout", {})
    return DistillConfig.model_validate(tree | {"rollout": rollout} | sections)


def metrics(settings: DistillConfig) -> list[dict[str, Any]]:
    asyncio.run(run_stage(settings))
    return [json.loads(line) for line in (settings.run.directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("drawn", [{"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0}], ids=str)
def test_the_canary_holds_for_answers_of_any_distribution(home: Path, drawn: dict[str, float]) -> None:
    [line] = [each for each in metrics(config(home, f"run-{drawn}", rollout=drawn)) if "canary/teacher_logprob_nats" in each]
    assert line["canary/engine_learner_nats_mean"] < 1e-5


def test_a_wrong_temperature_in_the_engine_stops_the_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warp = hf.warp
    monkeypatch.setattr(hf, "warp", lambda logits, sampling, *rest: warp(logits, Sampling(max_new_tokens=6), *rest))
    with pytest.raises(CanaryError, match="engine and learner disagree"):
        asyncio.run(run_stage(config(home, "wrong", rollout={"temperature": 0.7})))


def test_a_greedy_evaluation_in_a_run_measures_text_alone(home: Path) -> None:
    settings = config(home, "greedy", evaluation={"every": 1, "temperature": 0})
    assert any("evaluation of greedy answers (evaluation.temperature)" in line for line in plan_distill(settings).lines)
    found = [each for each in metrics(settings) if "evaluation/length_mean_tokens" in each]
    assert len(found) == 2
    for line in found:
        assert "evaluation/rouge_l" in line and "evaluation/truncated_frac" in line
        assert not any("_kl" in name for name in line if name.startswith("evaluation/"))


def test_models_are_evaluated_greedily(home: Path) -> None:
    tree = {
        "stage": "evaluate",
        "run": {"directory": str(home / "table")},
        "models": {name: str(home / name) for name in ("teacher", "student")},
        "teacher": {"model": str(home / "teacher")},
        "data": {"test": {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}"}, "max_prompt_tokens": 8},
        "rollout": {"engine": "hf", "max_new_tokens": 6, "temperature": 0},
        "cluster": {"roles": "local", "threads": 1},
    }
    settings = EvaluateConfig.model_validate(tree)
    plan = plan_evaluate(settings)
    assert any("divergences and exposure bias need samples at 1, and are left out" in line for line in plan.lines)
    result = asyncio.run(run_stage(settings))["result"]
    for seed, name in enumerate(("student", "teacher")):
        greedy = Sampling(max_new_tokens=6, temperature=0)
        texts = hf.sample(tiny_model(seed=seed), plan.renderer, plan.prompts, greedy, version=0)
        assert result[name]["length_mean_tokens"] == sum(len(text.tokens) for text in texts) / len(texts)
        assert "rouge_l" in result[name] and "reverse_kl" not in result[name] and "exposure_bias" not in result[name]
