"""What DeepSpeed is asked for, on a GPU and on a CPU."""

from typing import Any

import pytest
import torch

from minidist.config.learner import LearnerConfig
from minidist.learners.deepspeed import engine_settings


def asked(device: str, **fields: Any) -> dict[str, Any]:
    return engine_settings(LearnerConfig(**fields), torch.bfloat16, torch.device(device))["zero_optimization"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gpu_moves_tensors_while_it_computes(stage: int) -> None:
    assert asked("cuda", zero_stage=stage)["overlap_comm"] is (stage >= 2)
    assert asked("cpu", zero_stage=stage)["overlap_comm"] is False


def test_parameter_groups_are_deepspeeds_secondary_partitions() -> None:
    assert asked("cuda", zero_stage=3, parameter_group=8)["zero_hpz_partition_size"] == 8
    assert "zero_hpz_partition_size" not in asked("cuda", zero_stage=3)
