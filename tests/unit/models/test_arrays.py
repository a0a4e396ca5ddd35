"""Tensors to numpy arrays and back."""

import pytest
import torch

from minidist.models.arrays import to_array, to_tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_arrays_travel_unchanged(dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 3).mul(100).to(dtype)
    array, name = to_array(tensor.T)
    array.setflags(write=False)  # as Ray hands it out
    back = to_tensor(array, name)
    assert back.dtype == dtype
    assert torch.equal(back, tensor.T)
