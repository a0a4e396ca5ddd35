"""Run the experiment of this folder on one task; add what it finds to results.json, and draw results.png from all of it.

Usage: python configs/system2/run.py TASK [SEED ...]  (after prepare.py; a stage that is finished is not run again)
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import picture, table

HERE, RUNS = Path(__file__).parent, Path("runs/system2")
JUDGED = "Question: {{ question }}\\nA: {{ response_a }}\\nB: {{ response_b }}\\nWhich is better, A or B?"


@dataclass(frozen=True)
class Task:
    """How System 2 thinks about a task, and how much of its thinking is distilled.

    Args:
        program: System 2.
        form: how answers are compared.
        base_steps: optimizer steps of the base model.
        rows: problems whose answers may be distilled; steps: of distillation.
        batch: rows of an optimizer step, of both.
        tested: test problems.
        samples: answers to each; temperature: at which they are drawn.
        perturbations: changed inputs on which direct answers must agree, to be kept or to count as decided.
        prompt: of rows without one, or None.
        alone: whether the model is its own teacher too.
    """

    program: str
    form: str = "text"
    base_steps: int = 350
    rows: int = 1000
    steps: int = 120
    batch: int = 32
    tested: int = 300
    samples: int = 4
    temperature: float = 1
    perturbations: str = "[]"
    prompt: str | None = None
    alone: bool = False


STEPPED: dict[str, Any] = {"base_steps": 1000, "rows": 3000, "steps": 300, "batch": 64, "tested": 500, "alone": True}
TASKS = {
    "last_letters": Task("chain_of_thought", **STEPPED),
    "arithmetic": Task("chain_of_thought", **STEPPED),
    "last_letters_rephrased": Task("rephrase_then_respond", base_steps=1000, steps=200),
    "biased": Task("system_2_attention", base_steps=1000, steps=200),
    "coin_flip": Task("rephrase_then_respond", form="yes_no", steps=200),
    "judging": Task(
        "branch_solve_merge",
        form="option",
        base_steps=550,
        samples=1,
        temperature=0,
        perturbations="[swapped_responses]",
        prompt=JUDGED,
    ),
}


def minidist(stage: str, file: str, **values: object) -> None:
    """A stage with other values, by keys in which __ stands for a dot."""
    changed = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    subprocess.run([sys.executable, "-m", "minidist.cli", stage, str(HERE / file), *changed], check=True)


def answers(name: str, folder: Path, model: Path, program: str, **values: object) -> Path:
    """Answers of a model to problems of a task, in `folder`."""
    task = TASKS[name]
    changed = {"run__directory": folder, "model__model": model, "program__type": program, "program__form": task.form}
    changed |= {"data__rows__path": f"task:{name.removesuffix('_rephrased')}", "data__rows__rows": task.tested}
    if task.prompt is not None:
        changed["data__rows__prompt"] = f'"{task.prompt}"'
    minidist("generate", "system1.yaml", **{**changed, **values})
    return folder


def drawn(name: str, seed: int, perturbations: str) -> dict[str, object]:
    """Settings of the answers that may be distilled."""
    task = TASKS[name]
    return {
        "run__seed": seed,
        "data__rows__split": "train",
        "data__rows__rows": task.rows,
        "data__rows__seed": seed + 1,
        "rollout__samples_per_prompt": task.samples,
        "rollout__temperature": task.temperature,
        "program__filter": f"{{threshold: 0.5, perturbations: {perturbations}}}",
    }


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def measured(folder: Path) -> dict[str, float]:
    """Accuracy, generated tokens per answer, share of answers that hold in both orders, accuracy where an opinion is wrong."""
    found = summary(folder)
    record = {"accuracy": found["accuracy"], "tokens": found["answer_tokens_mean"], "decided": found["accept_frac"]}
    parts = sorted((folder / "rows").glob("*.jsonl"))
    rows = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    if wrong := [row["right"] for row in rows if row.get("opinion") == "wrong"]:
        record["accuracy_against_opinion"] = sum(wrong) / len(wrong)
    return record


def run(name: str, seed: int) -> dict[str, dict[str, float]]:
    """All systems of one task and seed."""
    task, of_task = TASKS[name], RUNS / name
    home, base = of_task / f"seed{seed}", of_task / "base/final"
    learnt = {"run__steps": task.base_steps, "batch_rows": task.batch, "data__train__path": of_task / "base.jsonl"}
    minidist("sft", "base.yaml", run__directory=of_task / "base", student__tokenizer=of_task / "tokenizer", **learnt)
    thought = answers(name, home / "thought", base, task.program, **drawn(name, seed, "[]"))
    at_once = answers(name, home / "at_once", base, "direct", **drawn(name, seed, task.perturbations))
    distilled = {"distilled": thought, "control": at_once}
    distilled = {system: rows for system, rows in distilled.items() if summary(rows)["rows_kept"]}
    for system, rows in distilled.items():
        paths = {"run__directory": home / system, "student__model": base, "data__train__path": rows / "kept.jsonl"}
        minidist("sft", "distil.yaml", run__seed=seed, run__steps=task.steps, batch_rows=task.batch, **paths)
    checked = {"program__filter": f"{{type: none, perturbations: {task.perturbations}}}"}
    tested = {
        "System 1": answers(name, of_task / "test_system1", base, "direct", **checked),
        "System 2": answers(name, of_task / "test_system2", base, task.program),
    }
    for system in distilled:
        tested[system] = answers(name, home / f"test_{system}", home / system / "final", "direct", **checked)
    if task.alone:
        own = {"student__model": base, "teacher__model": base, "data__prompts__path": thought / "rows"}
        minidist("distill", "self_distil.yaml", run__seed=seed, run__directory=home / "self_distilled", **own)
        tested["self-distilled"] = answers(name, home / "test_self", home / "self_distilled/final", "direct")
    found = {system: measured(folder) for system, folder in tested.items()}
    for kind, folder in (("thought", thought), ("at_once", at_once)):
        found[f"kept_{kind}"] = {"accept_frac": summary(folder)["accept_frac"], "accuracy": summary(folder)["accuracy_kept"]}
    return found


def main() -> None:
    """Run what is missing and write the results."""
    name, seeds = sys.argv[1], [int(each) for each in sys.argv[2:]] or [0, 1, 2]
    file = HERE / "results.json"
    for seed in seeds:
        found = run(name, seed)
        records = json.loads(file.read_text())
        records.setdefault(name, {})[str(seed)] = found
        file.write_text(json.dumps(records, indent=1) + "\n")
    records = json.loads(file.read_text())
    picture(records, HERE / "results.png")
    print(table(records))


if __name__ == "__main__":
    main()
