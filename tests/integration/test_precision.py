"""A learner of bfloat16 weights adds gradients in float32: over many micro-batches, and over ranks."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from minidist.config.models import StudentConfig
from minidist.learners.ranks import LearnerRanks
from minidist.types import Batch, Stream
from tests.integration.conftest import Stack, settings
from tests.integration.test_equalities import on_policy_batch, written

COPIES = 256


def masters(stack: Stack, learner: LearnerRanks, path: Path) -> dict[str, np.ndarray]:
    """The float32 weights that the optimizer steps."""
    path.mkdir()
    stack.run(learner.save_state(path))
    tensors = {name: array for file in path.glob("**/*.safetensors") for name, array in load_file(file).items()}
    return {name: array for name, array in tensors.items() if array.dtype == np.float32 and array.ndim >= 1}


@pytest.mark.parametrize("stage", [2, 3])
def test_many_equal_micro_batches_have_the_gradient_of_one(stack: Stack, stage: int, tmp_path: Path) -> None:
    """Of 256 equal contributions, sums in bfloat16 lose some: additions below half a step are rounded away."""
    stream = on_policy_batch(stack, written(stack, count=4)).steps[0][0]
    row = max(stream.rows, key=lambda row: len(row.labels))

    student = StudentConfig(model=str(stack.student), dtype="bfloat16")
    learner = stack.ranks(settings(micro_batch_tokens=1, zero_stage=stage), student=student)

    def gradient(copies: int) -> dict[str, np.ndarray]:
        stack.run(learner.load(stack.student))
        before = masters(stack, learner, tmp_path / f"before{copies}")
        rows = Stream(stream.name, (row,) * copies, stream.objective, copies * len(row.labels))
        update = stack.run(learner.update(Batch(0, ((rows,),))))
        assert update.metrics["learner/micro_batches"] == copies
        after = masters(stack, learner, tmp_path / f"after{copies}")
        return {name: before[name] - after[name] for name in before}

    one, many = gradient(2), gradient(COPIES)
    assert one.keys() == many.keys() and sum(array.size for array in one.values()) > 10_000
    for name, array in one.items():
        size = float(np.linalg.norm(array))
        if size > 0:
            assert float(np.linalg.norm(many[name] - array)) < 2e-3 * size, name


def test_its_gradient_is_that_of_a_float32_learner(stack: Stack, tmp_path: Path) -> None:
    """On the same weights, rounded to bfloat16; what is left are products and activations of 8 bits."""
    batch = Batch(0, ((on_policy_batch(stack, written(stack, count=25)).steps[0][0],),))
    start, steps = tmp_path / "rounded", list[dict[str, np.ndarray]]()
    for dtype in ("bfloat16", "float32"):
        model = str(stack.student if dtype == "bfloat16" else start)
        student = StudentConfig(model=model, dtype=dtype)  # type: ignore[arg-type]
        learner = stack.ranks(settings(micro_batch_tokens=1, zero_stage=2), student=student)
        if dtype == "bfloat16":
            stack.run(learner.load(stack.student))
            stack.run(learner.save(start))
        before = masters(stack, learner, tmp_path / f"{dtype}-before")
        update = stack.run(learner.update(batch))
        assert update.metrics["learner/micro_batches"] >= 25
        after = masters(stack, learner, tmp_path / f"{dtype}-after")
        steps.append({name: before[name] - after[name] for name in before})
    half, whole = (np.concatenate([step[name].ravel() for name in sorted(step)]) for step in steps)
    difference = float(np.linalg.norm(half - whole) / np.linalg.norm(whole))
    assert 1e-5 < difference < 0.02
