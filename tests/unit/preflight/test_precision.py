"""Precisions of the roles, and what a CPU has arithmetic for."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from minidist.config import DistillConfig
from minidist.config.cluster import ClusterConfig
from minidist.preflight import precision
from tests.support.config import load_stage


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DistillConfig]:
    return partial(load_stage, tmp_path, "distill")


APART = ("learner.compute_dtype=bfloat16", "rollout.dtype=bfloat16")


def test_precisions_of_a_distillation_are_those_of_its_roles(config: Callable[..., DistillConfig]) -> None:
    assert config().dtypes == {"student.dtype": "float32", "teacher.dtype": "float32"}
    apart = config(*APART)
    assert apart.dtypes == config().dtypes | {"learner.compute_dtype": "bfloat16", "rollout.dtype": "bfloat16"}
    assert apart.canaries.sync_tolerance(*apart.dtypes.values()) == config().canaries.sync_tolerance("bfloat16")


@pytest.mark.parametrize(("flags", "warned"), [({"avx2"}, True), ({"avx512_bf16"}, False)])
def test_a_role_in_emulated_precision_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., DistillConfig], flags: set[str], warned: bool
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    apart = config(*APART)
    lines = precision.precision_lines(ClusterConfig(), precision.hosted_dtypes(apart))
    expected = ["learner.compute_dtype", "rollout.dtype"] if warned else []
    assert [line.split()[1] for line in lines] == expected
