"""Lessons compared: every cell and seed once, resumable, with a table and pictures."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from minidist.config import load
from minidist.errors import ConfigError
from minidist.stages import run_stage
from tests.support.teach import teach, tree

KD = {"method": "kd"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lessons")
    settings = tree(folder)
    settings["run"] |= {"steps": 30, "checkpoint_every": None}
    teach(folder, settings, "teacher")
    return folder


def comparison(folder: Path, name: str = "compare", **changes: Any) -> Path:
    settings = tree(folder, evaluation={"every": 2}, teacher={"model": str(folder / "teacher/final")})
    settings |= {"student": {"init": {"layers": [0, 2]}}}
    base = {key: value for key, value in settings.items() if key != "stage"}
    base["run"] = {"steps": 4, "tensorboard": False, "checkpoint_every": None}
    scratch = {"student": {"model": str(folder / "teacher/final")}, "teacher": None}
    cells = {"ce": {"method": "ce"} | scratch, "kd": {"method": "kd"}, "hot": {"method": "kd", "loss.kd.temperature": 8.0}}
    found = {
        "stage": "compare_lessons",
        "run": {"directory": str(folder / name)},
        "base": base,
        "cells": cells,
        "seeds": [0, 1],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(found | changes, sort_keys=False))
    return path


def test_every_cell_and_seed_runs_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = comparison(folder, seeds=[0])
    assert asyncio.run(run_stage(load(path)))["runs"] == 3
    assert asyncio.run(run_stage(load(path)))["runs"] == 0
    assert asyncio.run(run_stage(load(comparison(folder))))["runs"] == 3  # the new seed
    records = json.loads((folder / "compare/lessons.json").read_text())
    assert [(row["objective"], row["seed"]) for row in records] == [
        (name, seed) for name in ("ce", "kd", "hot") for seed in (0, 1)
    ]
    by_hand = json.loads((folder / "compare/cells/kd-seed1/summary.json").read_text())["result"]["test"]
    assert (
        records[3]["accuracy"] == by_hand["student/accuracy"] and records[3]["teacher_accuracy"] == by_hand["teacher/accuracy"]
    )
    hot = json.loads((folder / "compare/cells/hot-seed0/config.json").read_text())
    assert hot["loss"]["kd"]["temperature"] == 8 and hot["run"]["seed"] == 0 and hot["loss"]["cross_entropy"]["weight"] == 0.5
    table = (folder / "compare/table.md").read_text()
    means = [sum(row["accuracy"] for row in records if row["objective"] == name) / 2 for name in ("ce", "kd", "hot")]
    assert all(f"| {mean:.3f} ± " in table for mean in means) and "majority" in table and "over 2 seeds" in table
    for picture in ("lessons.png", "curves.png"):
        assert (folder / "compare" / picture).stat().st_size > 8000
    assert "lessons.json" in capsys.readouterr().out


def test_cells_go_on_where_their_steps_grow(folder: Path) -> None:
    path = comparison(folder, "grown", seeds=[0], cells={"kd": KD | {"run.checkpoint_every": 4}})
    asyncio.run(run_stage(load(path)))
    assert asyncio.run(run_stage(load(path, ["base.run.steps=6"])))["runs"] == 1
    assert [each["step"] for each in json.loads((folder / "grown/lessons.json").read_text())[0]["evaluations"]][-1] == 6


def test_cells_without_validation_rows_are_measured_on_the_test_rows(folder: Path) -> None:
    changes = ["base.data.validation=null", "base.evaluation.every=null"]
    path = comparison(folder, "tested", seeds=[0], cells={"kd": KD})
    asyncio.run(run_stage(load(path, changes)))
    [record] = json.loads((folder / "tested/lessons.json").read_text())
    assert 0 <= record["accuracy"] <= 1 and record["evaluations"] == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"cells": {"a b": {}}}, "cells.a b: a cell's name is part of a path"),
        ({"curves": ["none"]}, "curves names none, which is no cell; expected some of ce, kd, hot"),
        ({"seeds": [1, 1]}, "a repeated seed repeats the run"),
        ({"cells": {"a": {"method": "nothing"}}}, "cells.a: method is 'nothing'"),
        ({"cells": {"a": {"run": {"seed": 3}}}}, "cells.a: run.seed is set by seeds"),
        (
            {"cells": {"a": KD, "b": KD | {"task.metrics": ["f1"]}}},
            "cells.b differs from cells.a in task.metrics, by which they are",
        ),
        ({"cells": {"a": KD, "b": KD | {"task.names": ["no", "yes"]}}}, "cells.b differs from cells.a in task.names"),
        ({"cells": {"a": KD, "b": KD | {"data.test.rows": 9}}}, "cells.b differs from cells.a in data.test"),
        (
            {"cells": {"a": KD | {"data.test": None, "data.validation": None, "evaluation.every": None}}},
            "neither test nor validation",
        ),
    ],
    ids=str,
)
def test_what_is_refused(folder: Path, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(comparison(folder, "refused", **changes))
    assert part in str(error.value)
