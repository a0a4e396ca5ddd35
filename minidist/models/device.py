"""The device of a role, and reproducible arithmetic on it."""

import os

import torch


def pick_device(on_gpu: bool) -> torch.device:
    """The device of a role: its GPU when the run has any, else the CPU."""
    return torch.device("cuda", 0) if on_gpu and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else torch.device("cpu")


def repeatable(deterministic: bool) -> None:
    """Make torch's results in this process reproducible bit for bit; operations that cannot be so raise RuntimeError."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # otherwise cuBLAS may sum in another order each time
        torch.use_deterministic_algorithms(True)
        # Otherwise torch also fills every new tensor, including DeepSpeed's buckets of a gigabyte, at each step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
