"""The device of a role, and reproducible arithmetic on it."""

import os

import torch
from torch import nn


def pick_device(on_gpu: bool) -> torch.device:
    """The device of a role: its GPU when the run has any, else the CPU."""
    return torch.device("cuda", 0) if on_gpu and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else torch.device("cpu")


def leave_device(*modules: nn.Module) -> None:
    """Move the modules to host memory, and give the device's memory back to other processes."""
    for module in modules:
        module.to("cpu")
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def to_device(device: torch.device, *modules: nn.Module) -> None:
    """Move the modules to a device."""
    for module in modules:
        module.to(device)


def repeatable(deterministic: bool) -> None:
    """Make torch's results in this process reproducible bit for bit; operations that cannot be so raise RuntimeError."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # otherwise cuBLAS may sum in another order each time
        torch.use_deterministic_algorithms(True)
        # Otherwise torch also fills every new tensor, including DeepSpeed's buckets of a gigabyte, at each step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
