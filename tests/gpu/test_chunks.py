"""Chunks of the loss on a GPU and on a CPU. Those of a CPU run everywhere, so that the test stays whole."""

import pytest
import torch

from minidist.losses import kernels
from minidist.losses.chunked import LazyLogits, LinearHead, chunked_loss
from minidist.losses.kernels import in_one_pass
from minidist.losses.targets import TokenTargets
from tests.support.config import make_objective

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.kernel]
KERNELS = [("cpu", "torch"), *(pytest.param("cuda", kernel, marks=NEEDS_GPU) for kernel in ("torch", "liger"))]
"""Devices, and the kernels of the loss there: Triton's need a GPU."""


@pytest.mark.parametrize(("device", "kernel"), KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "akl", "alpha_beta"])
def test_chunks_on_a_gpu_are_those_of_the_cpu(
    kind: str, kernel: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = make_objective(kind)
    on_gpu = in_one_pass(objective) if kernel == "liger" else objective
    generator = torch.Generator().manual_seed(0)
    hidden, weight, taught, theirs = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((700, 64), (5000, 64), (700, 96), (5000, 96))
    )

    def found(device: str) -> list[torch.Tensor]:
        own, head = hidden.to(device).requires_grad_(), weight.to(device).requires_grad_()
        student, teacher = LazyLogits(LinearHead(head), own), LazyLogits(LinearHead(theirs.to(device)), taught.to(device))
        labels = torch.zeros(700, dtype=torch.long, device=device)
        asked = objective if device == "cpu" else on_gpu
        loss = chunked_loss(asked, student, TokenTargets(labels), teacher=teacher, chunk_tokens=256).loss
        return [each.double().cpu() for each in (loss.detach(), *torch.autograd.grad(loss, (own, head)))]

    room = 1e-4 if dtype is torch.float32 else 0.03
    calls: list[float] = []
    if kernel == "liger":
        launched = kernels._kernel()
        monkeypatch.setattr(kernels, "_kernel", lambda: lambda *given: (calls.append(given[3]), launched(*given))[1])
    pairs = list(zip(found(device), found("cpu"), strict=True))
    assert bool(calls) == (kernel == "liger" and kind in ("forward_kl", "reverse_kl", "jsd")), "the kernel was launched"
    for got, wanted in pairs:
        assert (got - wanted).abs().max() <= room * wanted.abs().max()
