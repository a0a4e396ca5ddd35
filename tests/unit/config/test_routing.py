"""`teachers` and `routing`: what they accept, and the sentences that refuse the rest."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from minidist.config import DistillConfig, difference, dump, load
from tests.support.config import TREES, refusal

MATHS, CODE = {"model": "runs/maths"}, {"model": "runs/code", "backend": "server", "payload": "top_k", "top_k": 8}
SERVER = {"server": {"url": "http://127.0.0.1:8000"}}
TEACHERS: dict[str, Any] = {"maths": MATHS, "code": CODE | SERVER}
HIDDEN = {"maths": MATHS, "code": {"model": "runs/code"}}
BY_COLUMN = {"column": "domain"}


def tree(**sections: Any) -> dict[str, Any]:
    """The smallest distillation with two teachers, in place of one."""
    found = {key: value for key, value in TREES["distill"].items() if key != "teacher"}
    return found | {"teachers": TEACHERS, "routing": BY_COLUMN, "objective": {"type": "forward_kl"}} | sections


def config(**sections: Any) -> DistillConfig:
    return DistillConfig.model_validate(tree(**sections))


def refused(folder: Path, **sections: Any) -> str:
    file = folder / "several.yaml"
    file.write_text(yaml.safe_dump(tree(**sections), sort_keys=False))
    return refusal(file)


def test_each_teacher_has_its_own_backend_and_payload() -> None:
    found = config()
    assert {key: (each.backend, each.payload) for key, each in found.named_teachers.items()} == {
        "teachers.maths": ("hf", "hidden"),
        "teachers.code": ("server", "top_k"),
    }
    assert found.shapes_only == ("teachers.code.model",)
    assert set(found.dtypes) == {"student.dtype", "teachers.maths.dtype", "teachers.code.dtype"}


def test_one_teacher_is_as_ever() -> None:
    found = DistillConfig.model_validate(TREES["distill"])
    assert found.named_teachers == {"teacher": found.teacher} and found.with_teacher_alone("teacher") is found
    assert (found.teachers, found.routing, found.cluster.processes) == ({}, None, 3)


def test_every_teacher_has_actors_of_its_own() -> None:
    cluster = config(cluster={"teacher": {"actors": 2}}).cluster
    assert cluster.bundles(("rollout", "teacher", "learner")) == ["rollout", *["teacher"] * 4, "learner"]
    assert cluster.processes == 6
    on_gpus = config(teachers=HIDDEN, cluster={"gpus": 4}).cluster
    assert [on_gpus.gpus_of(on_gpus.role(name)) for name in ("rollout", "teacher", "learner")] == [1, 1, 1]
    shared = config(teachers=HIDDEN, cluster={"gpus": 2}).cluster
    assert shared.shares_devices and shared.gpus_of(shared.teacher) == 0.5


def test_a_recorded_configuration_is_read_again(tmp_path: Path) -> None:
    found = config()
    record = dump(found)
    assert record["teacher"] == record["teachers"]["maths"], "what reads records of one teacher reads the first of several"
    assert DistillConfig.model_validate(record) == found and difference(record, found) is None
    file = tmp_path / "several.yaml"
    file.write_text(yaml.safe_dump(tree(), sort_keys=False))
    changed = load(file, ["teachers.code.top_k=4"])
    assert difference(record, changed) == ("teachers.code.top_k", 8, 4)


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"routing": None}, ["nothing divides the rows", "routing.column or routing.weights"]),
        ({"teachers": {"maths": MATHS}}, ["teachers holds 1", "two or more"]),
        ({"teachers": {}, "teacher": MATHS}, ["teachers holds 0"]),
        ({"teacher": {"model": "runs/other"}}, ["teacher is one teacher, and teachers are several"]),
        ({"routing": {}}, ["exactly one of routing.column", "routing.weights"]),
        ({"routing": BY_COLUMN | {"weights": {"maths": 1.0}}}, ["exactly one of routing.column"]),
        ({"routing": BY_COLUMN | {"default": "mahts"}}, ["routing.default is 'mahts'", "maths, code"]),
        ({"routing": {"weights": {"maths": 1}, "default": "maths"}}, ["routing.default", "leave it out"]),
        ({"teachers": HIDDEN, "routing": {"weights": {"maths": 1}}}, ["names maths", "maths, code"]),
        ({"teachers": HIDDEN, "routing": {"weights": {"maths": 0.7, "code": 0.7}}}, ["add up to 1.4"]),
        ({"routing": {"weights": {"maths": 0.7, "code": 0.3}}}, ["teachers.code.payload top_k", "routing.column"]),
        ({"teachers": {"a/b": MATHS, "code": MATHS}}, ["teachers.a/b", "letters, digits"]),
        ({"rollout": {"teacher_mix": 0.2}}, ["rollout.teacher_mix 0.2", "set rollout.teacher_mix=0"]),
        ({"teachers": HIDDEN, "objective": {"type": "minillm"}}, ["objective.teacher_mix 0.2", "set objective.teacher_mix=0"]),
        ({"data": {"prompts": {"path": "task:sort"}, "template_from": "teacher"}}, ["data.template_from is teacher"]),
        ({"student": {"init": {"layers": [0]}}}, ["student.init cuts the student", "set student.model"]),
        ({"teachers": HIDDEN | {"cut": {"model": "m", "backend": "cache", "cache": "c"}}}, ["teachers.cut.backend is cache"]),
        (
            {"teachers": HIDDEN | {"own": {"model": "m", "context": "{{ hint }} {{ student_prompt }}"}}},
            ["teachers.own.context is read by one teacher"],
        ),
        (
            {"teachers": HIDDEN | {"learns": {"model": "m", "placement": "learner", "prompt": {}}}},
            ["teachers.learns is trained", "teachers.learns.placement=actor"],
        ),
        (
            {"teachers": HIDDEN, "routing": {"weights": {"maths": 0.7, "code": 0.3}}, "prefix": {"student": 0, "teacher": 1}},
            ["prefix.teacher", "mixture of routing.weights"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_combined_is_refused(tmp_path: Path, sections: dict[str, Any], parts: list[str]) -> None:
    sentence = refused(tmp_path, **sections)
    assert [part for part in parts if part not in sentence] == [], sentence


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        (CODE, ["teachers.code.server is missing"]),
        (CODE | SERVER | {"payload": "hidden"}, ["teachers.code.backend=server does not give payload hidden"]),
        (CODE | {"server": {"url": "http://a:b@host"}}, ["teachers.code.server.url", "set teachers.code.server.key_variable"]),
        (CODE | SERVER | {"payload": "sampled"}, ["teachers.code.payload sampled is poorer"]),
        ({"model": "m", "backend": "tgi"}, ["teachers.code.backend is 'tgi'"]),
        ({"model": "m", "topk": 4}, ["unknown key teachers.code.topk"]),
        ({"backend": "vllm"}, ["teachers.code.model is missing"]),
        (None, ["teachers.code is None; expected a section with model"]),
    ],
)
def test_a_refused_teacher_is_named(tmp_path: Path, code: dict[str, Any], parts: list[str]) -> None:
    for teachers in ({"maths": MATHS, "code": code}, {"code": code, "maths": MATHS}):
        sentence = refused(tmp_path, teachers=teachers)
        assert [part for part in parts if part not in sentence] == [], sentence
        assert "more)" not in sentence, "the first teacher is one problem, not two"


@pytest.mark.parametrize("stage", ["evaluate", "score"])
@pytest.mark.parametrize("key", ["teachers", "routing"])
def test_other_stages_take_one_teacher(tmp_path: Path, stage: str, key: str) -> None:
    file = tmp_path / f"{stage}.yaml"
    file.write_text(yaml.safe_dump(TREES[stage] | {key: tree()[key]}))
    assert f"{key} belongs to distill, and this stage takes one teacher; set teacher, and run it once for each" in refusal(file)


def test_a_comparison_keeps_one_teacher(tmp_path: Path) -> None:
    base = {key: value for key, value in tree(teachers=HIDDEN).items() if key not in ("stage", "run")}
    cells = {"forward": {"objective": {"type": "forward_kl"}}, "reverse": {"objective": {"type": "reverse_kl"}}}
    found = {"stage": "compare", "run": {"directory": "runs/compare"}, "base": base, "cells": cells, "seeds": [1]}
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump(found | {"evaluation": {"test": {"path": "task:sort"}}}))
    assert "one teacher; set base.teacher, and leave teachers and routing out" in refusal(file)
