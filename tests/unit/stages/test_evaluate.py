"""The evaluation of a teacher, a copy of it and a student, in this process, against plain computations."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedModel

from minidist.config import EvaluateConfig
from minidist.preflight.plan import plan_evaluate
from minidist.rollout.hf import sample
from minidist.run.tracking import log
from minidist.stages import run_stage
from minidist.types import Rollout, Sampling
from tests.support.tiny import tiny_model, tiny_renderer

RENDERER, SEEDS, LIMIT = tiny_renderer(), [3, 4], 20
ROWS = [{"q": f"{n}+=", "gold": [str(n), f"{n} {n}"], "c": ["5", "22"], "a": n % 2} for n in range(6)]
Result = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {"teacher": tiny_model(seed=1), "student": tiny_model(seed=0)}


@pytest.fixture(scope="module")
def config(models: dict[str, PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    root = tmp_path_factory.mktemp("evaluate")
    for name, path in (("teacher", "teacher"), ("teacher", "copy"), ("student", "student")):
        models[name].save_pretrained(root / path)
        RENDERER.tokenizer.save_pretrained(root / path)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = {"path": str(root / "rows.jsonl"), "prompt": "{{ q }}"}
    tree = {
        "stage": "evaluate",
        "run": {"directory": str(root / "run")},
        "models": {name: str(root / name) for name in ("teacher", "copy", "student")},
        "teacher": {"model": str(root / "teacher")},
        "data": {
            "test": source | {"references": "gold"},
            "questions": {"odd": source | {"choices": "c", "answer": "{{ a }}"}},
            "max_prompt_tokens": 8,
        },
        "seeds": SEEDS,
        "rollout": {"engine": "hf", "max_new_tokens": LIMIT, "no_repeat_ngram_size": 2},
        "cluster": {"roles": "local", "threads": 1},
    }
    return EvaluateConfig.model_validate(tree)


@pytest.fixture(scope="module")
def result(config: EvaluateConfig) -> Result:
    handlers, propagate = log.handlers, log.propagate
    try:
        return asyncio.run(run_stage(config))["result"]
    finally:
        log.handlers, log.propagate = handlers, propagate


def written(config: EvaluateConfig, model: PreTrainedModel, seed: int, **options: Any) -> list[Rollout]:
    sampling = Sampling(max_new_tokens=LIMIT, seed=seed, **options)
    return sample(model, RENDERER, plan_evaluate(config).prompts, sampling, version=0, vocabulary=13)


def test_result_is_written_whole(config: EvaluateConfig, result: Result) -> None:
    assert json.loads((config.run.directory / "result.json").read_text()) == result
    assert list(result) == ["teacher", "copy", "student"]


@torch.no_grad()
def test_exposure_bias_and_its_curve(config: EvaluateConfig, result: Result, models: dict[str, PreTrainedModel]) -> None:
    """The divergences are measured on answers in which nothing was blocked."""

    def error(texts: list[Rollout], length: int) -> float:
        sums = []
        for rollout in texts:
            ids = torch.tensor(np.concatenate([rollout.prompt.tokens, rollout.tokens])[None].astype(np.int64))
            start = len(rollout.prompt.tokens) - 1
            taught, own = (models[name](ids).logits[0, start:-1].double().log_softmax(-1) for name in ("teacher", "student"))
            sums.append(float((taught.exp() * (taught - own)).sum(-1)[:length].sum()))
        return float(np.mean(sums))

    for length in (16, LIMIT):
        ratios = []
        for seed in SEEDS:
            own, taught = (error(written(config, models[name], seed), length) for name in ("student", "teacher"))
            ratios.append(100 * (own - taught) / taught)
        assert result["student"]["exposure_bias_curve"][str(length)] == pytest.approx(np.mean(ratios), rel=1e-3)
    assert result["student"]["exposure_bias"] == result["student"]["exposure_bias_curve"][str(LIMIT)]
    assert result["student"]["exposure_bias_sd"] == pytest.approx(np.std(ratios, ddof=1), rel=1e-3)
    assert result["copy"]["exposure_bias"] == 0 and set(result["copy"]["exposure_bias_curve"].values()) == {0}
    assert result["copy"]["reverse_kl"] == pytest.approx(0, abs=1e-6)


def test_text_is_that_without_ngrams_twice(config: EvaluateConfig, result: Result, models: dict[str, PreTrainedModel]) -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for name in ("student", "teacher"):
        lengths, scores = [], []
        for seed in SEEDS:
            texts = written(config, models[name], seed, no_repeat_ngram_size=2)
            lengths.append(np.mean([len(rollout.tokens) for rollout in texts]))
            best = [scorer.score_multi(ROWS[r.prompt.row]["gold"], r.text)["rougeL"].fmeasure for r in texts]  # type: ignore[arg-type]
            scores.append(100 * np.mean(best))
        assert result[name]["length_mean_tokens"] == pytest.approx(np.mean(lengths))
        assert result[name]["length_mean_tokens_sd"] == pytest.approx(np.std(lengths, ddof=1))
        assert result[name]["rouge_l"] == pytest.approx(np.mean(scores))
        assert result[name]["repetition_frac"] == 0


@torch.no_grad()
def test_questions_are_answered_by_each_model_itself(result: Result, models: dict[str, PreTrainedModel]) -> None:
    for name in ("student", "teacher"):
        sure, right = [], []
        for row in ROWS:
            said = []
            for choice in ("5", "22"):
                ids = torch.tensor(RENDERER.prompt(f"{row['q']}{choice}")[None].astype(np.int64))
                logprobs = models[name](ids).logits[0].double().log_softmax(-1)
                start = len(RENDERER.prompt(str(row["q"])))
                said.append(sum(float(logprobs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])))
            chosen = int(np.argmax(said))
            sure.append(float(np.exp(said[chosen]) / np.exp(said).sum()))
            right.append(chosen == row["a"])
        naive = 0.0
        for low in range(10):
            inside = [at for at, value in enumerate(sure) if low / 10 < value <= (low + 1) / 10]
            naive += abs(sum(right[at] - sure[at] for at in inside)) / len(ROWS)
        assert result[name]["odd_accuracy"] == pytest.approx(np.mean(right))
        assert result[name]["odd_ece"] == pytest.approx(naive, abs=1e-4)
    assert result["copy"]["odd_ece"] == pytest.approx(result["teacher"]["odd_ece"], abs=1e-5)
    assert result["student"]["odd_ece"] != pytest.approx(result["teacher"]["odd_ece"], abs=1e-2)
