"""Small runs of `minidist teach`: sentences that say how good a film is, and tiny models."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from minidist.config import load
from minidist.run.accounting import PREFIXES
from minidist.stages import run_stage
from tests.support.classifiers import SHAPES, tokenizer

GOOD, BAD, NEUTRAL = (
    ("good", "great", "fine"),
    ("bad", "dull"),
    ("a", "film", "is", "it", "movie", "plot", "the", "this", "was"),
)


def sentences(path: Path, count: int, seed: int) -> Path:
    """Rows with a word of praise (label 1) or of blame (label 0) among others."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label = int(rng.integers(2))
        words = [str(word) for word in rng.choice(NEUTRAL, 4)] + [str(rng.choice(GOOD if label else BAD))]
        rows.append({"text": " ".join(rng.permutation(words)), "label": label, "number": number})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    """A configuration in which a student from scratch learns the sentences; `changes` replace sections."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.jsonl").exists():
        sentences(folder / "train.jsonl", 160, 0)
        sentences(folder / "valid.jsonl", 40, 1)
        sentences(folder / "test.jsonl", 40, 2)
        tokenizer(folder / "tokenizer")
    found: dict[str, Any] = {
        "stage": "teach",
        "run": {
            "directory": str(folder / "run"),
            "steps": 6,
            "tensorboard": False,
            "deterministic": True,
            "checkpoint_every": 3,
        },
        "task": {"type": "classes", "names": ["negative", "positive"]},
        "student": {"architecture": {"model_type": "bert"} | SHAPES["bert"], "tokenizer": str(folder / "tokenizer")},
        "data": {
            "train": {"path": str(folder / "train.jsonl")},
            "validation": {"path": str(folder / "valid.jsonl")},
            "test": {"path": str(folder / "test.jsonl")},
            "max_tokens": 16,
        },
        "learner": {"batch_rows": 16, "feedback_rows": 8, "optimizer": {"lr": 3.0e-3}},
        "cluster": {"roles": "local"},
    }
    return found | changes


def write(folder: Path, tree: dict[str, Any], name: str = "run") -> Path:
    """The file of a configuration whose run directory is `folder`/`name`."""
    path = folder / f"{name}.yaml"
    run = tree["run"] | {"directory": str(folder / name)}
    path.write_text(yaml.safe_dump(tree | {"run": run}), encoding="utf-8")
    return path


def teach(folder: Path, tree: dict[str, Any], name: str = "run") -> dict[str, Any]:
    """Run it in this process; returns the summary."""
    return asyncio.run(run_stage(load(write(folder, tree, name))))


def metrics(folder: Path, name: str = "run") -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without what a step cost."""
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if not key.startswith(PREFIXES)} for line in lines]
