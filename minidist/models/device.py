"""The device of a role, and whether it gives the same bits again."""

import os

import torch


def pick_device(on_gpu: bool) -> torch.device:
    """The device of a role: its GPU when the run has any, else the CPU."""
    return torch.device("cuda", 0) if on_gpu and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else torch.device("cpu")


def repeatable(deterministic: bool) -> None:
    """Have torch give the same bits again in this process, or refuse an operation that cannot."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may choose other sums each time
        torch.use_deterministic_algorithms(True)
        # It would also fill every new tensor, DeepSpeed's buckets of a gigabyte among them, at each step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
