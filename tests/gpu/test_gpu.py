"""The same equalities on a GPU, in bfloat16. Their bodies run on a CPU too, so that they stay whole where there is no GPU."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from minidist.cluster.cluster import Cluster
from minidist.config.cluster import ClusterConfig
from minidist.config.data import RenderConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.rollout import RolloutConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.data.tasks import find
from minidist.losses import kernels
from minidist.losses.chunked import LazyLogits, LinearHead, chunked_loss
from minidist.losses.kernels import in_one_pass
from minidist.losses.targets import TokenTargets
from minidist.roles.make import RoleContext, make_engine, make_learner
from minidist.roles.transfer import ObjectStoreTransfer
from tests.integration.conftest import SHAPE, save_model, settings
from tests.support.config import make_objective, objective_config

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
KERNELS = [("cpu", "torch"), *(pytest.param("cuda", kernel, marks=NEEDS_GPU) for kernel in ("torch", "liger"))]
"""Devices, and the kernels of the loss there: Triton's need a GPU."""


@pytest.mark.parametrize("device", DEVICES)
def test_engine_and_learner_agree_after_a_sync(tmp_path: Path, device: str) -> None:
    on_gpu = device == "cuda"
    save_model(tmp_path, SHAPE | {"head_dim": 64}, 1)
    renderer = Renderer(character_tokenizer(find("sort").alphabet), RenderConfig())
    context = RoleContext(renderer, max_tokens=48, on_gpu=on_gpu)

    async def agree() -> float:
        async with Cluster(ClusterConfig(gpus=int(on_gpu)), tmp_path / "logs", ("rollout", "learner")) as cluster:
            model = ModelConfig(model=str(tmp_path), dtype="bfloat16")
            engine = await cluster.host("rollout", make_engine, context=context, model=model, rollout=RolloutConfig())
            learner = await cluster.host(
                "learner",
                make_learner,
                student=StudentConfig(model=str(tmp_path), dtype="bfloat16"),
                teacher=None,
                config=settings(),
                objectives={"supervised": objective_config("supervised")},
                context=context,
            )
            return await ObjectStoreTransfer(tolerance_nats=0.5).publish(learner, [engine])

    assert np.isfinite(asyncio.run(agree()))


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
