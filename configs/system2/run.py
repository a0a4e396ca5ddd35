"""Run the experiment of this folder over tasks and seeds; write results.json, table.md and results.png here.

Usage: python configs/system2/run.py [SEED ...]  (after prepare.py and base.yaml; a stage that is finished is not run again)
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE, RUNS = Path(__file__).parent, Path("runs/system2")
TASKS = ("last_letters",)
SYSTEMS = {
    "System 1": "the base model, asked directly",
    "System 2": "the base model writes its steps",
    "control": "System 1 distilled through the same filter",
    "distilled": "System 2 distilled into direct answers",
    "self-distilled": "on-policy, the teacher reads the steps",
}


def minidist(stage: str, file: str, **values: object) -> None:
    """A stage with other values, by keys in which __ stands for a dot."""
    changed = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    subprocess.run([sys.executable, "-m", "minidist.cli", stage, str(HERE / file), *changed], check=True)


def answers(folder: Path, model: Path, task: str, file: str, **values: object) -> Path:
    """Answers of a model to problems of a task, in `folder`."""
    minidist("generate", file, run__directory=folder, model__model=model, data__rows__path=f"task:{task}", **values)
    return folder


def measured(folder: Path) -> dict[str, float]:
    """Accuracy and generated tokens per answer."""
    summary = json.loads((folder / "summary.json").read_text())
    return {"accuracy": summary["accuracy"], "tokens": summary["answer_tokens_mean"]}


def run(task: str, seed: int) -> dict[str, dict[str, float]]:
    """All systems of one task and seed."""
    home, base = RUNS / task / f"seed{seed}", RUNS / task / "base/final"
    thought = answers(home / "thought", base, task, "system2.yaml", run__seed=seed, data__rows__seed=seed + 1)
    drawn = {"data__rows__split": "train", "data__rows__rows": 3000, "data__rows__seed": seed + 1, "rollout__temperature": 1}
    drawn |= {
        "rollout__samples_per_prompt": 4,
        "program__filter": "{threshold: 0.5}",
    }
    at_once = answers(home / "at_once", base, task, "system1.yaml", run__seed=seed, **drawn)
    for name, rows in (("distilled", thought), ("control", at_once)):
        paths = {"run__directory": home / name, "student__model": base, "data__train__path": rows / "kept.jsonl"}
        minidist("sft", "distil.yaml", run__seed=seed, **paths)
    own = {"student__model": base, "teacher__model": base, "data__prompts__path": thought / "rows"}
    minidist("distill", "self_distil.yaml", run__seed=seed, run__directory=home / "self_distilled", **own)
    steps = {"program__type": "chain_of_thought"}
    tested = {
        "System 1": answers(home / "test_system1", base, task, "system1.yaml"),
        "System 2": answers(home / "test_system2", base, task, "system1.yaml", **steps),
        "control": answers(home / "test_control", home / "control/final", task, "system1.yaml"),
        "distilled": answers(home / "test_distilled", home / "distilled/final", task, "system1.yaml"),
        "self-distilled": answers(home / "test_self", home / "self_distilled/final", task, "system1.yaml"),
    }
    kept = {
        name: json.loads((folder / "summary.json").read_text()) for name, folder in (("thought", thought), ("at_once", at_once))
    }
    found = {name: measured(folder) for name, folder in tested.items()}
    for name, summary in kept.items():
        found[f"kept_{name}"] = {"accept_frac": summary["accept_frac"], "accuracy": summary["accuracy_kept"]}
    return found


def spread(values: list[float], digits: int) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def table(records: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Accuracy and tokens of each system, a task after another."""
    lines = [
        "|  | " + " | ".join(f"{task}: accuracy | tokens" for task in records) + " |",
        "| --- |" + " --- | --- |" * len(records),
    ]
    for name in SYSTEMS:
        cells = []
        for each in records.values():
            cells += [
                spread([found[name]["accuracy"] for found in each], 3),
                spread([found[name]["tokens"] for found in each], 1),
            ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(records: dict[str, list[dict[str, dict[str, float]]]], file: Path) -> None:
    """Accuracy against tokens per answer, a panel a task; each point is a seed."""
    figure, panels = plt.subplots(1, len(records), figsize=(6, 3.6), squeeze=False)
    for panel, (task, each) in zip(panels[0], records.items(), strict=True):
        for name in SYSTEMS:
            points = [(found[name]["tokens"], found[name]["accuracy"]) for found in each]
            panel.scatter(*zip(*points, strict=True), label=name, s=36, alpha=0.8)
        panel.set(title=task.replace("_", " "), xlabel="generated tokens per answer", xscale="log", ylim=(-0.03, 1.03))
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("accuracy, 500 test problems")
    panels[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main() -> None:
    """Run what is missing and write the results."""
    seeds = [int(each) for each in sys.argv[1:]] or [0, 1, 2]
    records = {task: [run(task, seed) for seed in seeds] for task in TASKS}
    (HERE / "results.json").write_text(json.dumps({"seeds": seeds, "records": records}, indent=1) + "\n")
    (HERE / "table.md").write_text(table(records))
    picture(records, HERE / "results.png")
    print(table(records))


if __name__ == "__main__":
    main()
