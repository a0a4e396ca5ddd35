"""Whole distillations whose teacher reads a context of its own, in this process, in transformers."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minidist.config import DistillConfig, ScoreConfig
from minidist.errors import DataError
from minidist.preflight.cost import role_needs
from minidist.preflight.facts import read_model
from minidist.preflight.plan import plan_distill, plan_score
from minidist.run.accounting import PREFIXES
from minidist.stages import run_stage
from minidist.teachers.cache.store import ScoreCache
from tests.support.tiny import tiny_model, tiny_renderer

ROWS = [{"q": f"{n}=", "a": f"{n:03d}"[::-1], "hint": "7" * (n % 5)} for n in range(24)]
EQUAL, OTHER = "{{ student_prompt }}", "{{ a }}={{ student_prompt }}"
LIMIT = 5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("context")
    tiny_model(seed=1).save_pretrained(root / "model")
    tiny_renderer().tokenizer.save_pretrained(root / "model")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


def tree(home: Path, name: str, context: Any, **sections: Any) -> dict[str, Any]:
    teacher = {"model": str(home / "model"), "context": context, **sections.pop("teacher", {})}
    return {
        "stage": "distill",
        "run": {"directory": str(home / name), "steps": 2, "tensorboard": False, **sections.pop("run", {})},
        "student": {"model": str(home / "model")},
        "teacher": teacher,
        "data": {
            "prompts": {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}"},
            "max_prompt_tokens": 8,
        },
        "rollout": {"engine": "hf", "prompts_per_step": 4, "max_new_tokens": LIMIT, **sections.pop("rollout", {})},
        "learner": {"backend": "single", "optimizer": {"lr": 1e-3}},
        "cluster": {"roles": "local", "threads": 1},
        "canaries": {"uniform_margin": 0.0},
    } | sections


def distilled(settings: dict[str, Any]) -> list[dict[str, float]]:
    """The figures of each step but the times."""
    asyncio.run(run_stage(DistillConfig.model_validate(settings)))
    lines = (Path(settings["run"]["directory"]) / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith(PREFIXES)} for line in lines]


def first_rollouts(home: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / name / "rollouts" / "step_000001.jsonl").read_text().splitlines()]


OBJECTIVES: dict[str, dict[str, Any]] = {
    "reverse_kl": {},
    "kd": {"prefix": {"student": 0, "dataset": 1}},
    "minillm": {"rollout": {"teacher_mix": 0.3}},
    "seqkd": {"objective": {"type": "supervised"}, "prefix": {"student": 0, "teacher": 1}},
    "jsd": {"teacher": {"payload": "top_k", "top_k": 4}},
    "forward_kl": {
        "teacher": {"payload": "top_k", "top_k": 4},
        "streams": {"gold": {"writer": "dataset", "objective": {"type": "forward_kl"}}},
    },
    "policy_gradient": {"teacher": {"payload": "sampled"}},
    "ranking": {"teacher": {"payload": "sampled"}, "rollout": {"samples_per_prompt": 2}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_equal_context_gives_the_ordinary_run_bit_for_bit_and_another_one_does_not(home: Path, name: str) -> None:
    def run(kind: str, context: Any) -> list[dict[str, float]]:
        sections = json.loads(json.dumps({"objective": {"type": name}} | OBJECTIVES[name]))
        return distilled(tree(home, f"{name}-{kind}", context, **sections))

    plain = run("plain", None)
    assert run("equal", EQUAL) == plain
    assert run("other", OTHER)[0] != plain[0]


def test_the_context_moves_the_teachers_scores_and_nothing_of_the_students(home: Path) -> None:
    for name, context in (("one", OTHER), ("two", "{{ hint }}{{ student_prompt }}")):
        distilled(tree(home, name, context, objective={"type": "reverse_kl"}))
    one, two = first_rollouts(home, "one"), first_rollouts(home, "two")
    for key in ("prompt", "answer", "tokens", "logprobs", "student_logprobs"):
        assert [row[key] for row in one] == [row[key] for row in two]
    moved = [np.abs(np.subtract(a["teacher_logprobs"], b["teacher_logprobs"])).max() for a, b in zip(one, two, strict=True)]
    assert min(moved) > 1e-3
    by_question = {row["q"]: row for row in ROWS}
    assert [row["teacher_prompt"] for row in one] == [f"{by_question[row['prompt']]['a']}={row['prompt']}" for row in one]


def test_rollouts_of_an_ordinary_teacher_name_no_context(home: Path) -> None:
    distilled(tree(home, "ordinary", None, objective={"type": "reverse_kl"}))
    assert not any("teacher_prompt" in row for row in first_rollouts(home, "ordinary"))


def test_a_cache_scored_in_the_context_trains_as_the_live_teacher_does_and_refuses_another_context(home: Path) -> None:
    offline = {"objective": {"type": "forward_kl"}, "prefix": {"student": 0, "dataset": 1}}
    source = {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}", "max_new_tokens": LIMIT}
    scoring = {
        "stage": "score",
        "run": {"directory": str(home / "score")},
        "student": {"model": str(home / "model")},
        "teacher": {"model": str(home / "model"), "context": OTHER},
        "data": {"sources": {"gold": source}, "max_prompt_tokens": 8},
        "cache": str(home / "cache"),
        "cluster": {"roles": "local", "threads": 1},
    }
    asyncio.run(run_stage(ScoreConfig.model_validate(scoring)))
    cached = {"teacher": {"backend": "cache", "cache": str(home / "cache")}} | offline
    live, found = distilled(tree(home, "live", OTHER, **offline)), distilled(tree(home, "cached", OTHER, **cached))
    for left, right in zip(live, found, strict=True):
        assert left.keys() == right.keys()
        assert all(left[key] == pytest.approx(right[key], rel=2e-4, abs=1e-6) for key in left)
    for name, context in (("none", None), ("else", "{{ a }}{{ student_prompt }}")):
        cached = {"teacher": {"backend": "cache", "cache": str(home / "cache")}} | offline
        with pytest.raises(DataError, match=r"lacks 24 of 24 rows of data.prompts; .* data, rendering, teacher.context"):
            plan_distill(DistillConfig.model_validate(tree(home, name, context, **cached)))
    scoring["teacher"] = {"model": str(home / "model")}
    scoring["run"] = {"directory": str(home / "score-plain")}
    asyncio.run(run_stage(ScoreConfig.model_validate(scoring)))  # another context in the same cache: rows beside the others
    assert len(ScoreCache(home / "cache")) == 48


def test_an_interrupted_run_resumes_with_the_context_bit_for_bit(home: Path) -> None:
    kind = {"objective": {"type": "reverse_kl"}, "run": {"deterministic": True, "steps": 4, "checkpoint_every": 2}}
    whole = distilled(tree(home, "whole", OTHER, **json.loads(json.dumps(kind))))
    short = json.loads(json.dumps(kind)) | {"run": kind["run"] | {"steps": 2}}
    distilled(tree(home, "short", OTHER, **short))
    assert distilled(tree(home, "short", OTHER, **json.loads(json.dumps(kind)))) == whole


def test_the_plan_names_the_context_the_weights_and_the_longest_row(home: Path) -> None:
    plan = plan_distill(
        DistillConfig.model_validate(tree(home, "plan", "{{ a }}" * 9 + EQUAL, objective={"type": "reverse_kl"}))
    )
    [line] = [line for line in plan.lines if line.startswith("teacher.context")]
    assert "in rows of up to 35 tokens" in line and f"the weights that the student starts from ({home}/model), frozen" in line
    assert plan.teacher_tokens == plan.longest == 27 + 3 + LIMIT
    assert "prompts as the teacher reads them" in plan.rows()
    other = tree(
        home, "plan", EQUAL, objective={"type": "reverse_kl"}, student={"model": str(home / "model"), "dtype": "float32"}
    )
    tiny_model(seed=2).save_pretrained(home / "other")
    tiny_renderer().tokenizer.save_pretrained(home / "other")
    other["teacher"]["model"] = str(home / "other")
    [line] = [line for line in plan_distill(DistillConfig.model_validate(other)).lines if line.startswith("teacher.context")]
    assert f"it has the weights of {home}/other, frozen" in line


def test_longer_rows_of_the_teacher_need_more_memory_of_the_teacher_alone(home: Path) -> None:
    kind = {"objective": {"type": "reverse_kl"}, "teacher": {"batch_tokens": 1}}
    config = DistillConfig.model_validate(tree(home, "memory", EQUAL, **kind))
    shape = read_model(config.teacher, "teacher.model").shape
    short, long = (role_needs(config, shape, shape, longest=40, teacher_longest=tokens, gpu=None) for tokens in (0, 4000))
    assert [need.role for need in long if need not in short] == ["teacher"]
    assert [need.total for need in long if need.role == "teacher"] > [need.total for need in short if need.role == "teacher"]


BAD = [
    (
        "{{ student_prompt }} {{ trace }}",
        {},
        "has no column 'trace', which teacher.context.prompt uses; its columns are q, a, hint",
    ),
    ({"system": "{{ trace }}"}, {}, "has no column 'trace', which teacher.context.system uses"),
    (
        {"prompt": EQUAL, "max_prompt_tokens": 2},
        {},
        "row 10: the teacher's prompt has 3 tokens, more than teacher.context.max_prompt_tokens = 2",
    ),
    ("{{ a }}" * 60 + EQUAL, {}, "more than the 123 that the teacher's context of 128 leaves beside an answer of 5"),
]


@pytest.mark.parametrize(("context", "sections", "sentence"), BAD)
@pytest.mark.parametrize("prefix", [{"student": 1}, {"student": 0, "dataset": 1}])
def test_a_context_that_the_rows_cannot_fill_is_refused_before_anything_starts(
    home: Path, context: Any, sections: dict[str, Any], sentence: str, prefix: dict[str, float]
) -> None:
    settings = tree(home, "bad", context, objective={"type": "forward_kl"}, prefix=prefix, **sections)
    with pytest.raises(DataError) as caught:
        plan_distill(DistillConfig.model_validate(settings))
    assert sentence in str(caught.value)


def test_score_checks_the_columns_too(home: Path) -> None:
    scoring = {
        "stage": "score",
        "run": {"directory": str(home / "never")},
        "student": {"model": str(home / "model")},
        "teacher": {"model": str(home / "model"), "context": "{{ trace }}"},
        "data": {
            "sources": {"gold": {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}", "max_tokens": 40}}
        },
        "cache": str(home / "no-cache"),
    }
    with pytest.raises(DataError, match="has no column 'trace'"):
        plan_score(ScoreConfig.model_validate(scoring))
    scoring["teacher"] = {"model": str(home / "model"), "context": OTHER}
    [first, *_] = plan_score(ScoreConfig.model_validate(scoring)).rows()["texts"]
    assert tiny_renderer().whole(first.tokens[: first.start]) == "000=0="  # as the teacher will read it
