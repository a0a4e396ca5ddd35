"""Liger's kernel against the plain divergences: its own code, element by element, in Triton's interpreter on a CPU.

`tests/unit/test_kernels.py` runs this file with TRITON_INTERPRET=1, which Triton reads when it is first imported.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.data.batching import collate
from minidist.losses import kernels
from minidist.losses.chunked import LazyLogits, LinearHead, chunked_loss
from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.losses.kernels import OnePass, in_one_pass
from minidist.losses.mixtures import jsd
from minidist.losses.objectives import Match
from minidist.losses.targets import TokenCredit, TokenTargets
from minidist.types import Batch
from tests.support.config import make_objective
from tests.support.learners import head_of_teacher, local_learner
from tests.support.tiny import hidden_scores, random_rollouts, tiny_model

N, V, D, E = 7, 50, 6, 5
SERVED: dict[str, Callable[..., Tensor]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd": partial(jsd, beta=0.5, endpoint="refuse"),
    "near the forward KL": partial(jsd, beta=0.1),
    "near the reverse KL": partial(jsd, beta=0.9),
    "as libraries have 0": partial(jsd, beta=0.0, endpoint="kl"),
    "as libraries have 1": partial(jsd, beta=1.0, endpoint="kl"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", SERVED)
def test_value_and_gradient_are_the_plain_ones(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher_table = (
        torch.tensor([0.1, 3.0, 30.0])[:, None, None] * torch.randn(3, N, V, generator=generator) for _ in "qp"
    )
    logits[:, 0] = teacher_table[:, 0]  # equal
    logits, teacher_table, weight = logits.flatten(0, 1), teacher_table.flatten(0, 1), torch.linspace(-1, 2, 3 * N)

    def found(divergence: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        given = logits.to(dtype).requires_grad_()
        loss_N = divergence(given.log_softmax(-1), teacher_table.to(dtype).log_softmax(-1))
        return loss_N.detach().double(), grad((weight * loss_N).sum(), given)[0].double()

    fused = in_one_pass(Match(SERVED[name])).divergence  # type: ignore[attr-defined]
    assert isinstance(fused, OnePass)
    for got, wanted in zip(found(fused, torch.float32), found(SERVED[name], torch.float64), strict=True):
        assert torch.allclose(got, wanted, rtol=2e-5, atol=3e-5)  # log-ratios reach 100 nats


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", SERVED)
def test_what_is_excluded_counts_as_it_does_plainly(name: str) -> None:
    for left, right in [([0.5, 0.5, 0.0], [0.0, 0.5, 0.5]), ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]), ([1.0, 0.0, 0.0], [0.2] * 3)]:
        rows = torch.tensor([left, [0.2, 0.3, 0.5]]).log().requires_grad_()
        teacher_table, plain = torch.tensor([right, [0.1, 0.6, 0.3]]).log(), SERVED[name]
        fused = in_one_pass(Match(plain)).divergence  # type: ignore[attr-defined]
        values = [each(rows, teacher_table) for each in (fused, plain)]
        assert torch.equal(*values) or torch.allclose(*values)
        assert torch.allclose(*(grad(value.sum(), rows)[0] for value in values))


def test_neither_table_is_written_to_and_doubles_stay_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(2, 3, 4).log_softmax(-1)
    held = rows.clone()
    in_one_pass(Match(reverse_kl))(rows[0], TokenTargets(torch.zeros(3, dtype=torch.long), rows[1]))
    assert torch.equal(rows, held)
    fused = OnePass(reverse_kl, 1.0)
    assert fused(rows[0].double(), rows[1].double()).dtype == torch.float64
    with pytest.raises(ValueError, match="same shape"):
        fused(rows[0], rows[1, :, :3])
    monkeypatch.setattr(kernels, "_kernel", lambda: pytest.fail("launched on nothing"))
    assert fused(rows[0, :0], rows[1, :0]).shape == (0,)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "match": {"type": "jsd", "beta": 0.3},
    "heated": {"type": "forward_kl", "temperature": 2.0},
    "support": {"type": "reverse_kl", "support": "union", "top_k": 5},
    "kd": {"type": "kd", "ratio": 0.7, "temperature": 2.0},
    "minillm": {"type": "minillm"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_in_chunks(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded vocabularies, a soft cap, gradients in the head's precision and all the figures are as without the kernel."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher_hidden, teacher_table = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((N, D), (V, D), (N, E), (V, E))
    )
    labels, ones = torch.randint(0, V - 3, (N,), generator=generator), torch.ones(N)
    targets = TokenTargets(labels, credit=TokenCredit(-3 * ones, ones, ones, torch.linspace(0.5, 2, N)))
    calls: list[float] = []
    kernel = kernels._kernel()
    monkeypatch.setattr(kernels, "_kernel", lambda: lambda *given: (calls.append(given[3]), kernel(*given))[1])

    def found(objective: Any) -> list[Tensor]:
        own, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        student = LazyLogits(LinearHead(head, soft_cap=5.0, vocabulary=V - 3), own)
        teacher = LazyLogits(LinearHead(teacher_table, vocabulary=V - 3), teacher_hidden)
        terms = chunked_loss(objective, student, targets, teacher=teacher, chunk_tokens=3)
        return [terms.loss.detach(), terms.logprob, terms.teacher_logprob, terms.figures_F, *grad(terms.loss, (own, head))]

    objective = make_objective(**OBJECTIVES[name])
    plain = found(objective)
    assert not calls
    for got, wanted in zip(found(in_one_pass(objective)), plain, strict=True):
        assert got.dtype == wanted.dtype
        room = 1e-5 if got.dtype == torch.float32 else 0.02
        assert torch.allclose(got.float(), wanted.float(), rtol=room, atol=room)
    assert calls, "the kernel has formed it"


def test_a_learner_with_it_takes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, rollouts = tiny_model(seed=1), random_rollouts([(3, 4), (1, 9)])
    stream = collate("main", rollouts, hidden_scores(teacher, rollouts), objective="main")
    calls: list[float] = []
    plain = kernels._kernel()
    monkeypatch.setattr(kernels, "_kernel", lambda: lambda *given: (calls.append(given[3]), plain(*given))[1])

    def stepped(kernel: Literal["torch", "liger"]) -> tuple[dict[str, float], list[Tensor]]:
        model, sgd = tiny_model(), OptimizerConfig(type="sgd", lr=1.0)
        config = LearnerConfig(backend="single", optimizer=sgd, kernel=kernel)
        learner = local_learner(model, config, {"main": Match(reverse_kl)}, steps=1, teacher=head_of_teacher(teacher))
        metrics = asyncio.run(learner.update(Batch(0, ((stream,),)))).metrics
        asyncio.run(learner.close())
        return metrics, list(model.parameters())

    metrics, wanted = stepped("torch")
    assert not calls
    fused, got = stepped("liger")
    assert calls == [1.0]
    assert {name: fused[name] for name in metrics if "seconds" not in name} == pytest.approx(
        {name: value for name, value in metrics.items() if "seconds" not in name}, rel=1e-4
    )
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(got, wanted, strict=True))
