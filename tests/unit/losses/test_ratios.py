"""Importance ratios: values by hand, and expectations over an enumerated world whose text an earlier student wrote."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minidist.config.objectives import MiniLLMConfig
from minidist.losses import reverse_kl
from minidist.losses.chunked import LazyLogits, LinearHead, chunked_loss
from minidist.losses.minillm import Drawn, credit_table, importance, minillm_loss, surrogate
from minidist.losses.objectives import K2, KD, Match, Supervised
from minidist.losses.ratios import Corrected, ratios
from minidist.losses.targets import Objective, TokenTargets
from tests.support.config import make_objective
from tests.support.world import World, golden

NAN = math.nan


@pytest.fixture
def world() -> World:
    return golden()


@pytest.fixture
def written(world: World) -> Tensor:
    """The parameters of the student that wrote the text, some updates ago."""
    return world.parameters.detach() + 0.4 * torch.randn(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_the_weight_of_a_token_by_hand() -> None:
    """q_now 0.6, 0.3, 0.1; written with 0.2, 0.4 and not by the student: ratios 3, 0.75, 1, of which the first is cut at 2."""
    student = torch.tensor([[0.6, 0.3, 0.1]] * 3, dtype=torch.float64).log()
    labels, written = torch.tensor([0, 1, 2]), torch.tensor([0.2, 0.4, NAN], dtype=torch.float64).log()
    targets = TokenTargets(labels, written_logprob_N=written)
    objective = Corrected(Supervised(), 2.0)
    expected = torch.tensor([2 * -math.log(0.6), 0.75 * -math.log(0.3), -math.log(0.1)], dtype=torch.float64)
    assert torch.allclose(objective(student, targets), expected, atol=1e-12)
    figures = objective.explain(student, targets)
    assert torch.allclose(figures, torch.tensor([[2.0, 1], [0.75, 0], [1, 0]], dtype=torch.float64), atol=1e-12)
    assert objective.figures == ("policy/ratio_mean", "policy/ratio_truncated_frac")
    assert objective.peaks() == {"policy/ratio_max": pytest.approx(3)} and objective.peaks() == {"policy/ratio_max": 0}


def test_the_ratio_has_no_gradient() -> None:
    logprob = torch.tensor([0.5]).log().requires_grad_()
    assert not ratios(logprob, torch.tensor([0.25]).log()).requires_grad


def losses(world: World, objective: Objective, parameters: Tensor | None, bound: float | None) -> Tensor:
    """[7 prefixes]: the gradient, over the next token's distribution under `parameters`, of the current student's loss."""
    logits = world.features @ world.parameters
    student, teacher = torch.log_softmax(logits, -1), torch.log_softmax(world.teacher, -1)
    by = student.detach() if parameters is None else torch.log_softmax(world.features @ parameters, -1)
    expected = []
    for prefix in range(len(student)):
        labels, rows = torch.arange(3), student[prefix].expand(3, 3)
        targets = TokenTargets(labels, teacher[prefix].expand(3, 3), teacher_logprob_N=teacher[prefix])
        used = objective
        if bound is not None:
            targets, used = replace(targets, written_logprob_N=by[prefix]), Corrected(objective, bound)
        loss = (by[prefix].exp() * used(rows, targets)).sum()
        expected.append(torch.autograd.grad(loss, world.parameters, retain_graph=True)[0])
    return torch.stack(expected)


@pytest.mark.parametrize("objective", [K2(), Match(reverse_kl)], ids=["k2", "reverse_kl"])
def test_the_expected_gradient_at_given_prefixes_is_the_on_policy_one(
    world: World, written: Tensor, objective: Objective
) -> None:
    on_policy, stale = losses(world, objective, None, None), losses(world, objective, written, math.inf)
    assert torch.allclose(stale, on_policy, atol=1e-13)


@pytest.mark.parametrize("kind", ["reverse_kl", "akl", "sinkhorn"])
def test_a_loss_of_whole_distributions_has_no_weight(kind: str) -> None:
    """It does not depend on the token that was drawn: the weight would add variance alone."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64).log_softmax(-1)
    targets = TokenTargets(torch.arange(5), teacher, group_N=torch.zeros(5, dtype=torch.int64))
    stale, objective = replace(targets, written_logprob_N=torch.full((5,), -9.0)), make_objective(kind)
    corrected = Corrected(objective, 2.0)
    assert torch.equal(corrected(student, stale), objective(student, targets)) and not corrected.sampled
    columns = corrected.explain(student, stale)[:, len(objective.figures) :]
    assert torch.equal(columns, torch.tensor([[2.0, 1.0]] * 5, dtype=torch.float64))


def test_an_objective_says_whether_it_depends_on_the_token_that_was_drawn() -> None:
    assert all(make_objective(kind).sampled for kind in ("k2", "supervised", "minillm", "policy_gradient"))
    assert [KD(ratio).sampled for ratio in (0.5, 1.0)] == [True, False]


def test_without_the_ratio_or_with_a_low_bound_a_loss_of_sampled_tokens_is_biased(world: World, written: Tensor) -> None:
    on_policy = losses(world, K2(), None, None)
    assert (losses(world, K2(), written, None) - on_policy).norm() > 0.1
    assert (losses(world, K2(), written, 1.05) - on_policy).norm() > 1e-3


def gradient(world: World, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, world.parameters)[0]


def stale_loss(world: World, written: Tensor, **options: Any) -> Tensor:
    """MiniLLM's loss of each answer, weighted by the probability with which an earlier student wrote it."""
    settings = MiniLLMConfig(length_norm=False, **options)
    student, teacher = (torch.log_softmax(logits, -1) for logits in world.logits())
    now, p = world.label_logprobs(student), world.label_logprobs(teacher)
    before = world.label_logprobs(world.logits(written)[0])
    drawn = Drawn(0.0, (now.detach() - before).exp())
    table = credit_table(now.detach(), p, world.lengths, settings, drawn=drawn, width=3)
    single = table.reach_BT * reverse_kl(student.flatten(0, 1), teacher.flatten(0, 1)).view(15, 3)
    long = surrogate(now, table.old_logprob_BT, table.advantage_BT, table.weight_BT, clip=None)
    return (world.probability(parameters=written) * ((single + long) * world.mask).sum(1)).sum()


def test_products_of_ratios_make_stale_text_exact_for_whole_answers(world: World, written: Tensor) -> None:
    whole = gradient(world, world.divergence())
    assert torch.allclose(gradient(world, stale_loss(world, written, importance="per_decision")), whole, atol=1e-12)
    assert (gradient(world, stale_loss(world, written, importance="one_step")) - whole).norm() > 1e-3


@pytest.mark.parametrize("mix", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("how", ["one_step", "none"])
def test_weights_of_stale_mixed_text_have_the_expectation_of_fresh_ones(
    world: World, written: Tensor, mix: float, how: str
) -> None:
    """Enumerated over coins and tokens of the first position: the mean of weight f is that of f under q or the mixture."""
    logits = (world.features[0] @ world.parameters.detach(), world.teacher[0], world.features[0] @ written)
    q, p, q_w = (torch.log_softmax(row, -1) for row in logits)
    f, settings = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64), MiniLLMConfig(importance=how)  # type: ignore[arg-type]
    lengths, total = torch.tensor([1]), torch.tensor(0.0, dtype=torch.float64)
    for token in range(3):
        for probability, before in (((1 - mix) * q_w[token].exp(), q_w[token]), (mix * p[token].exp(), torch.tensor(NAN))):
            drawn = Drawn(mix, ratios(q[token], before).view(1, 1).double())
            table = credit_table(q[token].view(1, 1), p[token].view(1, 1), lengths, settings, drawn=drawn, width=1)
            total += probability * table.weight_BT[0, 0] * f[token]
    expected = q.exp() if how == "one_step" else mix * p.exp() + (1 - mix) * q.exp()
    assert total.item() == pytest.approx((expected * f).sum().item(), abs=1e-13)


def test_fresh_text_has_the_weights_of_no_correction(world: World) -> None:
    student, teacher = (world.label_logprobs(logits).detach() for logits in world.logits())
    for how in ("one_step", "none", "per_decision"):
        settings = MiniLLMConfig(importance=how)  # type: ignore[arg-type]
        plain, stale = (
            credit_table(student, teacher, world.lengths, settings, drawn=Drawn(0.2, ones), width=3)
            for ones in (None, torch.ones_like(student))
        )
        for name, values in vars(plain).items():
            assert torch.equal(values, getattr(stale, name)), name
    student_logits, teacher_logits = world.logits()
    assert minillm_loss(student_logits, teacher_logits, world.tokens, world.lengths).isfinite().all()
    assert importance(student, teacher, world.lengths, teacher_mix=0.0).eq(1).all()


@pytest.mark.parametrize("chunk", [2, 100])
def test_chunks_add_up_to_the_plain_loss(chunk: int) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(7, 4, requires_grad=True), LinearHead(torch.randn(5, 4, requires_grad=True))
    labels, teacher = torch.randint(5, (7,)), torch.randn(7, 5).log_softmax(-1)
    before = torch.log_softmax(torch.randn(7, 5), -1).gather(-1, labels[:, None])[:, 0].index_fill(0, torch.tensor([2]), NAN)
    targets = TokenTargets(labels, teacher, written_logprob_N=before)
    objective = Corrected(K2(), 1.5)
    terms = chunked_loss(objective, LazyLogits(head, hidden), targets, chunk_tokens=chunk)
    student = torch.log_softmax(head(hidden), -1)
    ratio = (student.gather(-1, labels[:, None])[:, 0] - before).exp().nan_to_num(1.0).detach()
    gap = (student - teacher).gather(-1, labels[:, None])[:, 0]
    plain = (ratio.clamp(max=1.5) * gap**2 / 2).sum()
    assert terms.loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for found, expected in zip(
        torch.autograd.grad(terms.loss, [hidden, head.weight]), torch.autograd.grad(plain, [hidden, head.weight]), strict=True
    ):
        assert torch.allclose(found, expected, atol=1e-5)
    assert terms.figures_F.tolist() == pytest.approx([ratio.clamp(max=1.5).sum().item(), (ratio > 1.5).sum().item()], rel=1e-5)
    assert objective.peaks()["policy/ratio_max"] == pytest.approx(ratio.max().item(), rel=1e-5)
