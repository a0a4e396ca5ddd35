"""What `minidist check` accepts, runs: a distillation of two steps of each family in each setting."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.support.commands import run
from tests.support.families import saved_family

OBJECTIVES: dict[str, dict[str, Any]] = {
    "hidden": {"type": "reverse_kl"},
    "top_k": {"type": "forward_kl", "support": "teacher", "top_k": 4},
}
"""The objective that is trained with each payload."""


def configuration(
    folder: Path, family: str, *, backend: str, engine: str, payload: str, teacher: str = "hf", residency: bool = False
) -> Path:
    """A distillation of two random models of a family, in one process; `teacher`: its backend."""
    for seed, name in enumerate(("student", "teacher")):
        saved_family(family, folder / name, seed=seed)
    rows = [{"prompt": f"{left}{right}="} for left in range(4) for right in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "stage": "distill",
        "run": {"directory": str(folder / "run"), "steps": 2, "seed": 0},
        "student": {"model": str(folder / "student")},
        "teacher": {"model": str(folder / "teacher"), "backend": teacher, "payload": payload, "top_k": 4},
        "data": {"prompts": {"path": str(folder / "rows.jsonl")}, "max_prompt_tokens": 8},
        "objective": OBJECTIVES[payload],
        "rollout": {"engine": engine, "prompts_per_step": 8, "max_new_tokens": 8, "kv_cache_gib": 0.25},
        "learner": {"backend": backend},
        "canaries": {"uniform_margin": 0},  # random teachers, some of which are close to uniform
        "cluster": {"roles": "local", "threads": 1, "residency": residency},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def refusal_or_run(folder: Path, family: str, **settings: Any) -> str | None:
    """The sentence with which `check` refuses the distillation; None where it accepts the distillation and two steps ran."""
    config = configuration(folder, family, **settings)
    checked = run("check", config)
    if checked.returncode == 2:
        (sentence,) = (line for line in checked.stderr.splitlines() if line.startswith("minidist: "))
        return sentence
    assert checked.returncode == 0, checked.stderr
    ran = run("distill", config)
    assert ran.returncode == 0, f"check accepted it:\n{checked.stdout}\nand the run ended with:\n{ran.stderr}"
    steps = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [0, 1]
    return None
