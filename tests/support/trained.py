"""A finished run of `sft` on a tiny model, in this process."""

import asyncio
import json
from pathlib import Path
from typing import Any

from minidist.config import SftConfig
from minidist.stages import run_stage
from tests.support.tiny import tiny_model, tiny_renderer

ROWS = [{"prompt": f"{n}=", "answer": f"{n:03d}"[::-1]} for n in range(16)]


def trained_tree(root: Path, **run: Any) -> dict[str, Any]:
    """The configuration, with its model and data under `root`."""
    if not (root / "model").exists():
        tiny_model(seed=1).save_pretrained(root / "model")
        tiny_renderer().tokenizer.save_pretrained(root / "model")
        (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rows = {"path": str(root / "rows.jsonl"), "answer": "{{ answer }}"}
    return {
        "stage": "sft",
        "run": {"directory": str(root / "run"), "steps": 4, "tensorboard": False, **run},
        "student": {"model": str(root / "model")},
        "data": {"train": rows, "validation": rows, "max_prompt_tokens": 8, "max_tokens": 16},
        "learner": {"backend": "single", "optimizer": {"lr": 1e-2}},
        "evaluation": {"every": 2},
        "cluster": {"roles": "local", "threads": 1},
        "batch_rows": 8,
    }


def train(root: Path, **run: Any) -> Path:
    """The run's directory."""
    config = SftConfig.model_validate(trained_tree(root, **run))
    asyncio.run(run_stage(config))
    return config.run.directory
