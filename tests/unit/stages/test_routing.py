"""Whole distillations from several teachers, in this process: two of transformers, or one of them behind a server."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minidist.config import DistillConfig
from minidist.data.rendering import character_tokenizer
from minidist.errors import ConfigError, ModelError
from minidist.preflight.forecast.report import forecast
from minidist.preflight.plan import plan_distill
from minidist.run.accounting import PREFIXES
from minidist.stages import run_stage
from tests.support.server import PADDED, Server
from tests.support.tiny import tiny_model, tiny_renderer

DOMAINS = ["maths", "code", "code"]
ROWS = [{"q": f"{n:02d}=", "a": f"{n:02d}"[::-1], "domain": DOMAINS[n % 3]} for n in range(24)]
DETERMINISTIC = {"deterministic": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("routing")
    shapes: dict[str, dict[str, Any]] = {
        "student": {},
        "maths": {},
        "code": {"hidden_size": 32},
        "served": {"vocabulary": PADDED},
    }
    for seed, (name, fields) in enumerate({**shapes, "short": {"max_position_embeddings": 12}}.items()):
        tiny_model(seed=seed, **fields).save_pretrained(root / name)
        tiny_renderer().tokenizer.save_pretrained(root / name)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


def tree(home: Path, name: str, **sections: Any) -> dict[str, Any]:
    source = {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}"}
    return {
        "stage": "distill",
        "run": {"directory": str(home / name), "steps": 2, "tensorboard": False, **sections.pop("run", {})},
        "student": {"model": str(home / "student")},
        "data": {"prompts": source, "max_prompt_tokens": 8, "validation": source | {"rows": 6}, **sections.pop("data", {})},
        "objective": {"type": "reverse_kl"},
        "rollout": {"engine": "hf", "prompts_per_step": 6, "max_new_tokens": 5},
        "learner": {"backend": "single", "optimizer": {"lr": 1e-3}},
        "cluster": {"roles": "local", "threads": 1},
        "canaries": {"uniform_margin": 0.0},
    } | sections


def several(home: Path, name: str, **sections: Any) -> DistillConfig:
    """Two teachers of different sizes; each row is for one of them."""
    teachers = {each: {"model": str(home / each)} for each in ("maths", "code")}
    return DistillConfig.model_validate(
        tree(home, name, **({"teachers": teachers, "routing": {"column": "domain"}} | sections))
    )


def distilled(config: DistillConfig) -> list[dict[str, float]]:
    """The figures of each step and evaluation but the times."""
    asyncio.run(run_stage(config))
    lines = (config.run.directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith(PREFIXES)} for line in lines]


def weights(config: DistillConfig) -> dict[str, torch.Tensor]:
    return load_file(config.run.directory / "final" / "model.safetensors")


def same(one: DistillConfig, other: DistillConfig) -> bool:
    pair = weights(one), weights(other)
    return all(torch.equal(value, pair[1][name]) for name, value in pair[0].items())


def test_each_row_learns_from_its_own_teacher(home: Path) -> None:
    config = several(home, "routed", evaluation={"every": 2})
    before, *steps, after = distilled(config)
    assert [(line["teacher/maths/rows"] + line["teacher/code/rows"]) for line in steps] == [6, 6]
    for line in steps:
        assert 0 < line["teacher/maths/loss_nats_per_token"] != line["teacher/code/loss_nats_per_token"] > 0
        assert "canary/teacher/maths/logprob_nats" in line or line is not steps[0]
    for line in (before, after):
        assert {"evaluation/reverse_kl", "evaluation/forward_kl", "evaluation/exposure_bias"} <= line.keys()
        parts = [line[f"evaluation/teacher/{name}/reverse_kl"] for name in ("maths", "code")]
        assert min(parts) < line["evaluation/reverse_kl"] < max(parts)
    rollouts = (config.run.directory / "rollouts" / "step_000001.jsonl").read_text().splitlines()
    domains = {row["q"]: row["domain"] for row in ROWS}
    assert all(domains[row["prompt"]] == row["teacher"] for row in map(json.loads, rollouts))
    summary = json.loads((config.run.directory / "summary.json").read_text())
    assert set(summary["teacher"]["teachers"]) == {"maths", "code"}


@pytest.mark.parametrize("stream", [False, True])
def test_two_names_of_one_model_are_that_model_bit_for_bit(home: Path, stream: bool) -> None:
    """A row is scored in a pass of its own, since what else is in a pass may change its last bits."""
    shared: dict[str, Any] = {
        "run": DETERMINISTIC,
        "loop": {"stream": stream},
        "learner": {"backend": "single", "micro_batch_tokens": 24},
    }
    alone = {"model": str(home / "maths"), "batch_tokens": 1}
    one = DistillConfig.model_validate(tree(home, f"single-{stream}", teacher=alone, **shared))
    two = several(home, f"twice-{stream}", teachers={"maths": alone, "code": alone}, **shared)
    expected, found = distilled(one), distilled(two)
    assert same(one, two)
    for line, other in zip(expected, found, strict=True):
        assert {key: value for key, value in other.items() if "teacher/" not in key} == {
            key: value for key, value in line.items() if "teacher/" not in key
        }


def test_a_mixture_of_weight_1_and_0_is_the_one_teacher_bit_for_bit(home: Path) -> None:
    one = DistillConfig.model_validate(tree(home, "sole", teacher={"model": str(home / "code")}, run=DETERMINISTIC))
    mixture = several(home, "zero", routing={"weights": {"maths": 0, "code": 1}}, run=DETERMINISTIC)
    assert distilled(one) == distilled(mixture)
    assert same(one, mixture)


def test_a_mixture_learns_from_both_teachers(home: Path) -> None:
    config = several(home, "mixture", routing={"weights": {"maths": 0.5, "code": 0.5}}, evaluation={"every": 2})
    before, *steps, after = distilled(config)
    assert all(line["loss/nats_per_token"] > 0 for line in steps)
    assert "evaluation/reverse_kl" in before and "evaluation/forward_kl" not in before, "no teacher writes text of a mixture"
    assert after["evaluation/reverse_kl"] < before["evaluation/reverse_kl"]
    only = several(home, "mixture-maths", routing={"weights": {"maths": 1, "code": 0}})
    assert distilled(only)[0]["loss/nats_per_token"] != steps[0]["loss/nats_per_token"]


def test_one_teacher_may_be_local_and_another_behind_a_server(home: Path) -> None:
    """Rows of hidden states and rows of listed classes in one batch; the server is asked for its own rows alone."""
    server = Server()
    served = {"model": str(home / "served"), "backend": "server", "payload": "top_k", "top_k": 6, "server": {"url": server.url}}
    teachers = {"maths": {"model": str(home / "maths")}, "code": served}
    config = several(home, "served-run", teachers=teachers, evaluation={"every": 2})
    try:
        before, *steps, _ = distilled(config)
    finally:
        server.close()
    asked = [body["prompt"] for path, body, _ in server.seen if path == "/v1/completions" and "prompt_logprobs" in body]
    assert len(asked) > 12
    read = tiny_renderer()
    of_code = [read.prompt(row["q"]).tolist() for row in ROWS if row["domain"] == "code"]
    assert all(sequence[:3] in of_code for sequence in asked if len(sequence) > 2)
    for line in steps:
        assert line["teacher/maths/loss_nats_per_token"] > 0 and line["teacher/code/loss_nats_per_token"] > 0
    assert "evaluation/teacher/maths/reverse_kl" in before and "evaluation/teacher/code/reverse_kl" not in before
    assert "evaluation/reverse_kl" not in before, "a mean over some of the rows would not be that of all"


def test_a_stopped_run_resumes_with_the_same_teachers(home: Path) -> None:
    whole = several(home, "whole", run=DETERMINISTIC | {"steps": 3, "checkpoint_every": 2})
    distilled(whole)
    part = several(home, "part", run=DETERMINISTIC | {"steps": 2, "checkpoint_every": 2})
    distilled(part)
    rest = several(home, "part", run=DETERMINISTIC | {"steps": 3, "checkpoint_every": 2})
    distilled(rest)
    assert same(whole, rest)


def test_the_plan_names_each_teacher_its_rows_and_its_memory(home: Path) -> None:
    lines = plan_distill(several(home, "plan")).lines
    assert any(line.startswith("teachers.maths: llama") for line in lines)
    assert "rows by teacher (routing.column domain): 10 maths, 20 code" in lines
    assert any("maths: 1 x hf scores (hidden), code: 1 x hf scores (hidden)" in line for line in lines)
    table = [line.split()[0] for line in lines if line.startswith(("learner ", "rollout ", "teachers."))]
    assert [name for name in table if not name.endswith(":")] == ["learner", "rollout", "teachers.maths", "teachers.code"]
    mixture = plan_distill(several(home, "plan", routing={"weights": {"maths": 0.7, "code": 0.3}})).lines
    assert "the teacher of every row is the mixture 0.7 maths + 0.3 code of distributions (routing.weights)" in mixture


def test_each_teacher_has_a_context_limit_of_its_own(home: Path) -> None:
    """The rows of maths fit its context of 12 tokens; those of all rows need not."""
    teachers = {"maths": {"model": str(home / "short")}, "code": {"model": str(home / "code")}}
    fields: dict[str, Any] = {"teachers": teachers, "data": {"max_prompt_tokens": 60}}
    plan = plan_distill(several(home, "plan", **fields))
    assert plan.longest_rows == {"teachers.maths": 8, "teachers.code": 8}
    longer = {"engine": "hf", "prompts_per_step": 6, "max_new_tokens": 20}
    with pytest.raises(ConfigError, match=r"longest row of teachers.maths, with its answer, is 23, more than .* 12 tokens"):
        plan_distill(several(home, "plan", **fields, rollout=longer))


def test_a_teacher_with_another_tokenizer_is_named(home: Path) -> None:
    tiny_model(seed=9).save_pretrained(home / "other")
    character_tokenizer("9876543210=").save_pretrained(home / "other")
    teachers = {"maths": {"model": str(home / "maths")}, "code": {"model": str(home / "other")}}
    with pytest.raises(ModelError, match=r"teachers.code: student and teacher have different tokenizers"):
        plan_distill(several(home, "plan", teachers=teachers))


def test_a_missing_column_is_refused_before_models_are_read(home: Path) -> None:
    with pytest.raises(ValueError, match=r"has no column 'topic', which routing.column names; its columns are q, a, domain"):
        plan_distill(several(home, "plan", routing={"column": "topic"}))


def test_a_teacher_without_rows_is_a_warning(home: Path) -> None:
    third = {each: {"model": str(home / each)} for each in ("maths", "code", "served")}
    lines = plan_distill(several(home, "plan", teachers=third)).lines
    assert "WARNING no row is for teachers.served (routing.column)" in lines


def test_a_forecast_is_of_one_teacher(home: Path) -> None:
    with pytest.raises(ConfigError, match="teachers are maths, code, and a forecast is of one teacher"):
        forecast(several(home, "plan"))
