"""Tensors to numpy arrays and back."""

import torch
from torch import Tensor

from minidist.types import Array


def to_tensor(array: Array, dtype: str) -> Tensor:
    """A numpy array to a tensor; bfloat16 travels as uint16."""
    import warnings

    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only views, and no caller writes to the tensor.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" and array.dtype.name == "uint16" else tensor


def to_array(tensor: Tensor) -> tuple[Array, str]:
    """A tensor to a numpy array and the name of its dtype; bfloat16 travels as uint16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy(), "bfloat16"
    return tensor.numpy(), str(tensor.dtype).removeprefix("torch.")
