"""The learner of a lesson on two ranks equals that of one process, in Ray actors with a real process group."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from minidist.config import load
from minidist.config.origin import with_origin
from minidist.preflight.lessons import plan_teach
from minidist.roles.lessons import make_lesson_learner
from minidist.teaching.learner import LessonLearner
from minidist.teaching.ranks import LessonRanks
from tests.integration.conftest import Stack
from tests.support.teach import teach, tree, write

METHODS = ("dist", "lgtm", "lgtm_reweight", "meta")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lessons")
    settings = tree(folder)
    settings["run"] |= {"steps": 20, "checkpoint_every": None}
    teach(folder, settings, "teacher")
    return folder


def steps(learner: Any, exercises: Any, count: int) -> tuple[list[dict[str, float]], list[Any]]:
    async def run() -> Any:
        updates = [await learner.update(await exercises.next(step)) for step in range(count)]
        return [update.metrics for update in updates], [update.influence for update in updates]

    return run()  # type: ignore[return-value]


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one(stack: Stack, folder: Path, method: str) -> None:
    settings = tree(
        folder, method=method, teacher={"model": str(folder / "teacher/final")}, student={"init": {"layers": [0, 2]}}
    )
    settings["data"] = settings["data"] | {"feedback": {}}
    if method == "dist":
        settings["loss"] = {"dist": {"group_rows": 4}}
    # Plain gradient descent: Adam would step by the sign of a gradient that is zero but for rounding.
    sgd = {"type": "sgd", "lr": 0.2}
    settings["learner"] = settings["learner"] | {"optimizer": sgd}
    settings["lesson"] = {"optimizer": sgd} if method != "dist" else {}
    settings["run"] |= {"deterministic": False}
    config: Any = load(write(folder, settings, f"ranks-{method}"))
    plan, arguments = plan_teach(config), {"config": with_origin(config)}
    arguments |= {"task": plan.facts}
    stack.run(stack._start(make_lesson_learner, arguments))
    pair, alone = LessonRanks(stack.pair), make_lesson_learner(**arguments)
    found, expected = stack.run(steps(pair, plan.exercises, 4)), asyncio.run(steps(alone, plan.exercises, 4))  # type: ignore[arg-type]
    for left, right in zip(found[0], expected[0], strict=True):
        assert left.keys() == right.keys() and left == pytest.approx(right, rel=1e-3, abs=1e-5)
    for left, right in zip(found[1], expected[1], strict=True):
        assert (left is None) == (right is None) == (method != "lgtm_reweight")
        assert left is None or np.allclose(left, right, rtol=0.05, atol=1e-4)
    rows = plan.test.student if plan.test is not None else ()
    judged = [stack.run(pair.judge("student", rows)), asyncio.run(alone.judge("student", rows))]
    assert np.allclose(judged[0].loss, judged[1].loss, atol=1e-4) and (judged[0].labels == judged[1].labels).all()
    stack.run(pair.save(folder / f"pair-{method}"))
    asyncio.run(alone.save(folder / f"alone-{method}"))
    states = [load_file(folder / f"{name}-{method}" / "model.safetensors") for name in ("pair", "alone")]
    assert all(np.allclose(value, states[1][key], atol=2e-4) for key, value in states[0].items())
    moved = load_file(folder / "teacher/final/model.safetensors")["classifier.weight"] - states[0]["classifier.weight"]
    assert float(moved.abs().max()) > 1e-3, "the student has learned something"
    close(alone)


def close(learner: LessonLearner) -> None:
    asyncio.run(learner.close())
