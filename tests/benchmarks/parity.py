"""Does overlap change what a student becomes? `python -m tests.benchmarks.parity [MODELS]`.

The quickstart's distillation and its table, over three seeds: strictly on-policy and with text one collection old, answers
scored at the end and as they finish. Teacher and student are trained once, by configs/quickstart, or stand under MODELS
(teacher/final and student/final). A run that is interrupted goes on with the cells that are left.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

CONFIGS, RUNS = Path("configs/quickstart"), Path("runs/bench/parity")
CELLS = {
    f"staleness-{most}{'-streamed' * stream}": {"loop": {"max_staleness": most, "stream": stream}}
    for most in (0, 1)
    for stream in (False, True)
}


def main() -> None:
    models = Path(sys.argv[1]) if len(sys.argv) > 1 else RUNS / "models"
    for name in ("teacher", "student"):
        if not (models / name / "final").is_dir():
            _minidist("sft", CONFIGS / f"{name}.yaml", f"run.directory={models / name}")
    RUNS.mkdir(parents=True, exist_ok=True)
    file = RUNS / "parity.yaml"
    file.write_text(yaml.safe_dump(_comparison(models), sort_keys=False))
    _minidist("compare", file)
    print((RUNS / "compare" / "table.md").read_text())


def _comparison(models: Path) -> dict[str, Any]:
    """The quickstart's distillation as the base of a comparison."""
    base, table = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("distill", "evaluate"))
    del base["stage"], base["evaluation"], base["data"]["validation"]
    base["run"] = {"steps": base["run"]["steps"], "checkpoint_every": None, "rollouts_every": 1000, "tensorboard": False}
    for name in ("teacher", "student"):
        base[name]["model"] = str(models / name / "final")
    return {
        "stage": "compare",
        "run": {"directory": str(RUNS / "compare")},
        "seeds": [0, 1, 2],
        "base": base | {"cluster": {"threads": 1}},
        "cells": CELLS,
        "evaluation": {"test": table["data"]["test"]},
    }


def _minidist(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "minidist.cli", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
