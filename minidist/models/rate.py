"""How fast the device of a role multiplies matrices: what its work is measured against."""

import time

import torch

_SECONDS = 0.1
_LARGEST = 4096


@torch.no_grad()
def matrix_product_rate(*, dtype: str, on_gpu: bool) -> float:
    """The best rate of square matrix products in this precision, FLOP/s, on the GPU or with all threads of this process.

    Measured for about a tenth of a second, with matrices that grow until a product takes long enough.
    """
    device, best, size, until = "cuda" if on_gpu else "cpu", 0.0, 256, time.perf_counter() + _SECONDS
    left = _square(size, dtype, device)
    torch.mm(left, left)  # loads the kernel
    while time.perf_counter() < until:
        seconds = _product_seconds(left, on_gpu)
        best = max(best, 2.0 * size**3 / seconds)
        if seconds < _SECONDS / 50 and size < _LARGEST:  # eight times the work still leaves room for several
            size *= 2
            left = _square(size, dtype, device)
    return best


def _square(size: int, dtype: str, device: str) -> torch.Tensor:
    return torch.full((size, size), 0.5, dtype=getattr(torch, dtype), device=device)


def _product_seconds(left: torch.Tensor, on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.mm(left, left)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start
