"""The rate of matrix products."""

import time

import pytest
import torch

from minidist.models import rate
from minidist.models.rate import matrix_product_rate


def test_the_rate_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of 256, 512 and then 1024 rows, each at the rate of 1e12 but one that is disturbed."""
    sizes: list[int] = []

    def seconds(left: torch.Tensor, on_gpu: bool) -> float:
        sizes.append(len(left))
        time.sleep(0.02)
        return 2 * len(left) ** 3 / 1e12 * (10 if len(sizes) == 4 else 1)

    monkeypatch.setattr(rate, "_product_seconds", seconds)
    assert matrix_product_rate(dtype="float32", on_gpu=False) == pytest.approx(1e12)
    assert sizes[:4] == [256, 512, 1024, 1024], "a product of 1024 rows takes 2 ms already"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_measured_quickly(dtype: str) -> None:
    start = time.perf_counter()
    assert matrix_product_rate(dtype=dtype, on_gpu=False) > 1e8
    assert time.perf_counter() - start < 5
