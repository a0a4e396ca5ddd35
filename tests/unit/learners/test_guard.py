"""A gradient that is not finite is named; a large one that is finite is not."""

import pytest
import torch
from torch import nn

from minidist.errors import DivergedError
from minidist.learners.group import OneProcess
from minidist.learners.guard import FiniteGuard

INF, NAN = float("inf"), float("nan")


def seen(gradient: list[float], dtype: torch.dtype) -> FiniteGuard:
    """A guard that has seen a gradient of the parameter `second`, and one of zeros of `first`."""
    model = nn.ParameterDict({name: nn.Parameter(torch.zeros(4, dtype=dtype)) for name in ("first", "second")})
    guard = FiniteGuard(model)  # type: ignore[arg-type]
    (model["first"].sum() * 0 + (model["second"] * torch.tensor(gradient, dtype=dtype)).sum()).backward()
    return guard


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradient", [[0, NAN, 0, 0], [INF, 0, 0, 0], [0, 0, 0, -INF], [INF, 1, -INF, 1]], ids=str)
def test_every_number_that_is_not_finite_is_found(gradient: list[float], dtype: torch.dtype) -> None:
    with pytest.raises(DivergedError, match="step 3: the gradient of second is not finite; nothing was updated"):
        seen(gradient, dtype).check(OneProcess(), 3)


@pytest.mark.parametrize(("number", "dtype"), [(60_000, torch.float16), (3e38, torch.bfloat16), (5e37, torch.float32)])
def test_the_sum_of_large_numbers_is_not_taken_for_one_that_is_not_finite(number: float, dtype: torch.dtype) -> None:
    gradient = [number, -number, number, number] if dtype != torch.bfloat16 else [number, -number, 0, 0]
    seen(gradient, dtype).check(OneProcess(), 0)


def test_a_later_micro_batch_does_not_hide_an_earlier_one() -> None:
    guard = seen([NAN, 0, 0, 0], torch.float32)
    guard._see("second", torch.zeros(4))
    with pytest.raises(DivergedError):
        guard.check(OneProcess(), 0)
    guard.reset()
    guard.check(OneProcess(), 0)
