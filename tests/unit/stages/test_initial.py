"""Students cut from larger models, in sft and distill: written once, from which every role loads them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from minidist.config import load
from minidist.errors import ConfigError, ModelError
from minidist.preflight.plan import plan_distill, plan_sft
from minidist.stages import run_stage
from minidist.types import TaskFacts
from tests.support.classifiers import predictor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of three layers, and rows."""
    folder = tmp_path_factory.mktemp("initial")
    predictor(folder / "tokenizer", "gpt2", TaskFacts("tokens")).save(folder / "model")
    rows = [{"prompt": "is it good", "answer": " yes"}, {"prompt": "was this a dull movie", "answer": " no"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def configuration(folder: Path, stage: str, name: str, **changes: Any) -> Path:
    source = {"path": str(folder / "rows.jsonl")}
    tree: dict[str, Any] = {
        "stage": stage,
        "run": {"directory": str(folder / name), "steps": 2, "tensorboard": False, "deterministic": True},
        "student": {"model": str(folder / "model"), "init": {"layers": [0, 2]}},
        "learner": {"backend": "single", "optimizer": {"lr": 0.01}},
        "cluster": {"roles": "local"},
    }
    if stage == "sft":
        tree |= {"data": {"train": source | {"answer": "{{ answer }}"}, "max_tokens": 16}, "batch_rows": 2}
    else:
        tree |= {
            "data": {"prompts": source, "max_prompt_tokens": 12},
            "teacher": {"model": str(folder / "model")},
            "objective": {"type": "reverse_kl"},
        }
        tree |= {
            "rollout": {"engine": "hf", "prompts_per_step": 2, "max_new_tokens": 3},
            "student": {"init": {"layers": [0, 2]}},
        }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree | changes))
    return path


@pytest.mark.parametrize("stage", ["sft", "distill"])
def test_a_cut_student_is_trained_and_resumes_from_what_was_cut(folder: Path, stage: str) -> None:
    path = configuration(folder, stage, stage)
    summary = asyncio.run(run_stage(load(path)))
    run = folder / stage
    initial, final, whole = (
        load_file(each / "model.safetensors") for each in (run / "initial", run / "final", folder / "model")
    )
    assert torch.equal(initial["transformer.h.1.mlp.c_fc.weight"], whole["transformer.h.2.mlp.c_fc.weight"])
    assert json.loads((run / "final/config.json").read_text())["n_layer"] == 2 and summary["steps"] == 2
    assert final.keys() == initial.keys() and any(not torch.equal(final[key], each) for key, each in initial.items())
    stamp = (run / "initial/model.safetensors").stat().st_mtime_ns
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | {"run": tree["run"] | {"steps": 3}}))
    assert asyncio.run(run_stage(load(path)))["steps"] == 3
    assert (run / "initial/model.safetensors").stat().st_mtime_ns == stamp and not (run / ".initial").exists()


def test_the_plan_names_the_cut_and_counts_its_disk(folder: Path) -> None:
    for stage, plan in (("sft", plan_sft), ("distill", plan_distill)):
        lines = plan(load(configuration(folder, stage, f"plan-{stage}"))).lines  # type: ignore[operator]
        assert any(line.startswith("student: layers 0, 2 of ") and line.endswith("/model (3)") for line in lines)
        assert any("initial 0.00 GiB" in line for line in lines)
        parameters = [line.split(", ")[1] for line in lines if line.startswith("student: gpt2")]
        whole = plan(load(configuration(folder, stage, "whole", student={"model": str(folder / "model")}))).lines  # type: ignore[operator]
        assert parameters and parameters != [line.split(", ")[1] for line in whole if line.startswith("student: gpt2")]


@pytest.mark.parametrize(
    ("stage", "changes", "part"),
    [
        ("sft", {"student": {"init": {"layers": [0]}}}, "student.init cuts a model, and there is none; set student.model"),
        ("sft", {"student": {"model": "MODEL", "init": {"layers": [3]}}}, "names layer 3, and the model has 3 layers"),
        ("sft", {"student": {"model": "MODEL", "init": {"layers": []}}}, "student.init.layers"),
        (
            "distill",
            {"teacher": {"model": "MODEL", "backend": "server", "payload": "top_k", "server": {"url": "http://127.0.0.1:1"}}},
            "elsewhere",
        ),
        (
            "sft",
            {"student": {"architecture": {"model_type": "gpt2"}, "tokenizer": "t", "init": {"layers": [0]}}},
            "set one of them",
        ),
    ],
    ids=str,
)
def test_cuts_that_are_refused(folder: Path, stage: str, changes: dict[str, Any], part: str) -> None:
    text = configuration(folder, stage, "refused", **changes).read_text().replace("MODEL", str(folder / "model"))
    (folder / "refused.yaml").write_text(text)
    with pytest.raises((ConfigError, ModelError)) as error:
        asyncio.run(run_stage(load(folder / "refused.yaml")))
    assert part in str(error.value) and not (folder / "refused").exists()


def test_a_comparison_takes_no_cut(folder: Path) -> None:
    base = yaml.safe_load(configuration(folder, "distill", "cell").read_text())
    base = {key: value for key, value in base.items() if key != "stage"} | {"run": {"steps": 1}}
    tree = {"stage": "compare", "run": {"directory": str(folder / "compare")}, "base": base, "cells": {"a": {}}}
    (folder / "compare.yaml").write_text(yaml.safe_dump(tree | {"evaluation": {"test": {"path": str(folder / "rows.jsonl")}}}))
    with pytest.raises(ConfigError, match=r"student.init cuts a model; cut it once with minidist sft, and set student.model"):
        load(folder / "compare.yaml")
