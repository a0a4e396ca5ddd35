"""MiniLLM against enumerated expectations: every term in every variant, with figures computed elsewhere."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minidist.config.objectives import MiniLLMConfig
from minidist.losses import minillm_loss
from minidist.losses.divergences import reverse_kl
from minidist.losses.minillm import Drawn, credit_table, importance, returns, rewards, surrogate, whiten
from tests.support.world import World, golden

SINGLE = [0.00817723, -0.28196653, 0.29722852, -0.08165165, -0.05054480]
LONG = [0.00442963, -0.22852515, 0.30061556, 0.15383489, 0.18312121]
LONG_NORMALISED = [-0.01307533, -0.23249247, 0.23468448, 0.15116907, 0.17165185]
FULL = [0.01260686, -0.51049168, 0.59784408, 0.07218324, 0.13257640]
OWN_NORMALISED = [0.01990013, -0.27677966, 0.35731620, -0.05475157, -0.01251845]
OWN_DISCOUNTED = [0.01932897, -0.27135352, 0.34814350, -0.05855600, -0.01728134]
MIXED_SINGLE = [-0.00586729, -0.28099176, 0.30610391, -0.05915619, -0.04339656]
MIXED_LONG = [0.00918984, -0.12354429, 0.16565663, 0.07691031, 0.09397922]
PRINTED = 6e-9  # the figures have eight decimals


@pytest.fixture
def world() -> World:
    return golden()


def expected(world: World, *, mix: float = 0.0, **options: Any) -> Tensor:
    """Gradient of the loss in the student's parameters, in expectation over answers drawn from the mixture."""
    losses = minillm_loss(*world.logits(), world.tokens, world.lengths, teacher_mix=mix, **options)
    return gradient(world, (world.probability(mix) * losses).sum())


def gradient(world: World, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, world.parameters)[0]


def spread_of(world: World, losses: Tensor, probability: Tensor) -> tuple[Tensor, float]:
    """Mean and variance of the answers' gradients."""
    rows = torch.stack([torch.autograd.grad(loss, world.parameters, retain_graph=True)[0] for loss in losses])
    mean = (probability[:, None] * rows).sum(0)
    return mean, float((probability[:, None] * (rows - mean).square()).sum())


def same(found: Tensor, figures: list[float] | Tensor, tolerance: float = 1e-8) -> None:
    assert (found - torch.as_tensor(figures, dtype=torch.float64)).abs().max() < tolerance, found


# The objective


def test_the_world_is_the_published_one(world: World) -> None:
    assert world.divergence().item() == pytest.approx(0.61167843637716, abs=1e-14)
    assert (world.probability() * world.lengths).sum().item() == pytest.approx(2.22571317, abs=PRINTED)
    assert (world.probability(0.2) * world.lengths).sum().item() == pytest.approx(2.22068756, abs=PRINTED)
    same(gradient(world, world.divergence()), FULL, PRINTED)


def test_the_chain_rule_gives_the_divergence_of_answers(world: World) -> None:
    student, teacher = (torch.log_softmax(logits, -1) for logits in world.logits())
    per_token = reverse_kl(student.flatten(0, 1), teacher.flatten(0, 1)).view(15, 3) * world.mask
    assert (world.probability() * per_token.sum(1)).sum().item() == pytest.approx(world.divergence().item(), abs=1e-12)


def test_policy_gradient_is_the_divergences_gradient_and_its_finite_difference(world: World) -> None:
    own = {"single_step": False, "credit": "own", "length_norm": False}
    found = expected(world, **own)
    same(found, gradient(world, world.divergence()), 1e-12)
    step = 1e-6 * torch.eye(5, dtype=torch.float64)
    with torch.no_grad():
        ends = [[world.divergence(world.parameters + sign * row).item() for sign in (1, -1)] for row in step]
    same(found, torch.tensor([(up - down) / 2e-6 for up, down in ends], dtype=torch.float64))


def test_the_paper_is_single_plus_long(world: World) -> None:
    single, long = expected(world, long_term=False), expected(world, single_step=False, length_norm=False)
    same(single, SINGLE, PRINTED)
    same(long, LONG, PRINTED)
    whole = expected(world, length_norm=False)
    same(whole, single + long, 1e-14)
    same(whole, gradient(world, world.divergence()), 1e-12)
    assert (single - whole).norm() / whole.norm() == pytest.approx(0.56, abs=5e-3)  # GKD is not MiniLLM


def test_length_normalised_long_term(world: World) -> None:
    same(expected(world, single_step=False), LONG_NORMALISED, PRINTED)


def test_lmops_counts_the_single_step_twice(world: World) -> None:
    plain = {"preset": "lmops", "gamma": 1.0, "reward_scale": 1.0, "length_norm": False}
    single, long = expected(world, long_term=False), expected(world, single_step=False, length_norm=False)
    same(expected(world, **plain), 2 * single + long, 1e-12)
    same(expected(world, preset="lmops", gamma=1.0, reward_scale=1.0, single_step=False), OWN_NORMALISED, PRINTED)
    same(expected(world, preset="lmops", reward_scale=1.0, single_step=False), OWN_DISCOUNTED, PRINTED)
    same(expected(world, preset="lmops", single_step=False), [2 * value for value in OWN_DISCOUNTED], 2 * PRINTED)


@pytest.mark.parametrize("preset", ["paper", "lmops"])
@pytest.mark.parametrize("mix", [0.0, 0.2, 1.0])
def test_equal_models_have_loss_zero(world: World, preset: Any, mix: float) -> None:
    student, _ = world.logits()
    losses = minillm_loss(student, student.detach(), world.tokens, world.lengths, preset=preset, teacher_mix=mix)
    assert losses.abs().max() < 1e-12
    assert gradient(world, losses.sum()).abs().max() < 1e-12
    student_logprobs = world.label_logprobs(student).detach()
    assert (importance(student_logprobs, student_logprobs, world.lengths, teacher_mix=mix) == 1).all()


def test_estimators_of_the_divergence(world: World) -> None:
    student, teacher = (torch.log_softmax(logits, -1).detach().flatten(0, 1) for logits in world.logits())
    ratio = teacher - student
    k3 = ratio.exp() - 1 - ratio
    exact = reverse_kl(student, teacher)
    assert torch.allclose((student.exp() * k3).sum(-1), exact) and (k3 >= 0).all()
    assert torch.allclose((student.exp() * -ratio).sum(-1), exact)


# The single step


def test_single_step_is_the_slope_of_the_divergence_at_fixed_prefixes(world: World) -> None:
    student, teacher = world.logits()
    free = student.detach().clone().requires_grad_()
    loss = minillm_loss(free, teacher, world.tokens, world.lengths, long_term=False).sum()
    slope = torch.autograd.grad(loss, free)[0]
    q, gap = free.detach().softmax(-1), torch.log_softmax(free.detach(), -1) - torch.log_softmax(teacher, -1)
    closed = q * (gap - (q * gap).sum(-1, keepdim=True)) * world.mask[..., None]
    same(slope, closed, 1e-12)


def test_sampled_single_step_agrees_in_the_mean_and_varies_more(world: World) -> None:
    def moments(**options: Any) -> tuple[Tensor, float]:
        losses = minillm_loss(*world.logits(), world.tokens, world.lengths, length_norm=False, **options)
        return spread_of(world, losses, world.probability())

    exact, sampled = moments(), moments(single_step=False, credit="own")
    same(exact[0], sampled[0], 1e-12)
    assert (exact[1], sampled[1]) == pytest.approx((1.54, 3.91), abs=5e-3)


def test_only_the_students_logits_get_a_gradient(world: World) -> None:
    student, teacher = (logits.detach().clone().requires_grad_() for logits in world.logits())
    old = world.label_logprobs(student).detach().clone().requires_grad_()
    loss = minillm_loss(student, teacher, world.tokens, world.lengths, old_logprobs_BT=old, teacher_mix=0.2).sum()
    found, *others = torch.autograd.grad(loss, [student, teacher, old], allow_unused=True)
    assert found.abs().max() > 0.1 and others == [None, None]
    apart = minillm_loss(student, teacher.detach(), world.tokens, world.lengths, teacher_mix=0.2).sum()
    same(torch.autograd.grad(apart, student)[0], found, 1e-15)


def test_padded_ids_take_no_probability_and_excluded_ones_no_gradient(world: World) -> None:
    student, teacher = (logits.detach() for logits in world.logits())
    plain = minillm_loss(student, teacher, world.tokens, world.lengths)
    wider = torch.cat([teacher, torch.full((15, 3, 2), 7.0, dtype=torch.float64)], -1)
    same(minillm_loss(student, wider, world.tokens, world.lengths), plain, 1e-12)
    shut = torch.full((15, 3, 2), -torch.inf, dtype=torch.float64)
    both = [torch.cat([logits, shut], -1).requires_grad_() for logits in (student, teacher)]
    found = minillm_loss(*both, world.tokens, world.lengths)
    same(found, plain, 1e-12)
    slope = torch.autograd.grad(found.sum(), both[0])[0]
    assert slope.isfinite().all() and (slope[..., 3:] == 0).all()


def test_the_direction_of_the_divergence() -> None:
    student, teacher = (torch.tensor([[[0.5, 0.4, 0.1]], [[0.9, 0.05, 0.05]]])[row : row + 1].log() for row in (0, 1))
    loss = minillm_loss(student, teacher, torch.tensor([[0]]), torch.tensor([1]), long_term=False)
    assert loss.item() == pytest.approx(0.60720, abs=1e-5)


# Returns


def test_the_return_of_the_last_token_is_zero(world: World) -> None:
    one = (world.tokens[:1], world.lengths[:1])
    student, teacher = (logits[:1] for logits in world.logits())
    loss = minillm_loss(student, teacher, *one, single_step=False)
    assert loss.item() == 0 and gradient(world, loss.sum()).abs().max() == 0
    none = minillm_loss(student, teacher, one[0], torch.tensor([0]))
    assert none.item() == 0


@pytest.mark.parametrize("credit", ["next", "own"])
def test_a_constant_reward_is_its_own_mean(credit: Any) -> None:
    lengths = torch.tensor([1, 4, 7])
    found = returns(torch.full((3, 7), -1.5), lengths, gamma=1.0, credit=credit, length_norm=True)
    for row, length in enumerate(lengths.tolist()):
        last = 0.0 if credit == "next" else -1.5
        assert found[row].tolist() == [*[-1.5] * (length - 1), last, *[0.0] * (7 - length)]
    discounted = returns(torch.full((3, 7), -1.5), lengths, gamma=0.95, credit="own", length_norm=True)
    for n in range(1, 8):
        assert discounted[2, 7 - n].item() == pytest.approx(-1.5 * (1 - 0.95**n) / (n * 0.05), rel=1e-5)


@pytest.mark.parametrize("credit", ["next", "own"])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("length_norm", [True, False])
def test_returns_equal_the_double_sum(credit: Any, gamma: float, length_norm: bool) -> None:
    rng = np.random.default_rng(3)
    given, lengths = rng.normal(size=(4, 9)), [9, 1, 5, 0]
    found = returns(torch.tensor(given), torch.tensor(lengths), gamma=gamma, credit=credit, length_norm=length_norm)
    for row, length in enumerate(lengths):
        for t in range(9):
            start = t + (credit == "next")
            terms = [gamma ** (k - start) * given[row, k] for k in range(start, length)] if t < length else []
            value = sum(terms) / (max(1, len(terms)) if length_norm else 1)
            assert found[row, t].item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("preset", ["paper", "lmops"])
def test_the_loss_is_finite_at_length_4096(preset: Any) -> None:
    torch.manual_seed(0)
    student = (torch.randn(2, 4096, 5) * 4).requires_grad_()
    teacher, tokens = torch.randn(2, 4096, 5) * 4, torch.randint(0, 5, (2, 4096))
    lengths = torch.tensor([4096, 4000])
    for options in ({}, {"gamma": 0.9}, {"gamma": 0.9, "length_norm": False}):
        loss = minillm_loss(student, teacher, tokens, lengths, preset=preset, teacher_mix=0.2, **options)
        assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), student)[0].isfinite().all()
    constant = returns(torch.ones(1, 4096), torch.tensor([4096]), gamma=0.9, credit="own", length_norm=False)
    assert constant[0, 0].item() == pytest.approx(10.0, rel=1e-5) and constant[0, -1].item() == 1.0


@pytest.mark.parametrize("preset", ["paper", "lmops"])
def test_padding_and_other_answers_change_nothing(world: World, preset: Any) -> None:
    student, teacher = (logits.detach() for logits in world.logits())
    whole = minillm_loss(student, teacher, world.tokens, world.lengths, preset=preset, teacher_mix=0.2)
    rubbish = torch.full((15, 2, 3), torch.nan, dtype=torch.float64)
    longer = [torch.cat([logits, rubbish], 1).requires_grad_() for logits in (student, teacher)]
    tokens = torch.cat([torch.where(world.mask, world.tokens, -100), torch.full((15, 2), -100)], 1)
    for logits in longer:
        logits.data[:, :3][~world.mask] = torch.nan
    old = torch.cat([world.label_logprobs(student), torch.full((15, 2), 1e4, dtype=torch.float64)], 1)
    padded = minillm_loss(longer[0], longer[1], tokens, world.lengths, preset=preset, old_logprobs_BT=old, teacher_mix=0.2)
    same(padded, whole, 1e-12)
    slope = torch.autograd.grad(padded.sum(), longer[0])[0]
    assert (slope[:, 3:] == 0).all() and (slope[:, :3][~world.mask] == 0).all() and slope.isfinite().all()
    parts = [[table[i : i + 1] for table in (student, teacher, world.tokens, world.lengths)] for i in range(15)]
    same(torch.cat([minillm_loss(*part, preset=preset, teacher_mix=0.2) for part in parts]), whole, 1e-12)


def test_the_end_of_sequence_token_is_rewarded_and_padding_is_not(world: World) -> None:
    student, teacher = world.logits()
    free = student.detach().clone().requires_grad_()
    answer = 1  # (0, end)
    loss = minillm_loss(free, teacher, world.tokens, world.lengths, long_term=False)[answer]
    slope = torch.autograd.grad(loss, free)[0][answer].abs().sum(-1)
    assert (slope[:2] > 0).all() and slope[2] == 0
    earned = rewards(world.label_logprobs(student).detach(), world.label_logprobs(teacher), world.lengths, scale=1.0, clip=None)
    assert earned[answer, 1] != 0 and earned[answer, 2] == 0


# The mixture and its weights


def test_importance_weights_are_those_of_the_mixture(world: World) -> None:
    student, teacher = (torch.log_softmax(logits, -1).detach() for logits in world.logits())
    for mix in (0.2, 0.5, 1.0):
        rows = (student.flatten(0, 1), teacher.flatten(0, 1), torch.full((45,), 3))
        weights = importance(*rows, teacher_mix=mix)
        mean = ((mix * rows[1].exp() + (1 - mix) * rows[0].exp()) * weights).sum(-1)
        same(mean, torch.ones_like(mean), 1e-12)
        assert mix == 1 or float(weights.max()) <= 1 / (1 - mix)
    certain = importance(torch.tensor([[-0.1]]), torch.tensor([[-200.0]]), torch.tensor([1]), teacher_mix=0.2)
    assert certain.item() == pytest.approx(1.25)
    assert importance(
        torch.tensor([[-5.0]]), torch.tensor([[-2.0]]), torch.tensor([1]), teacher_mix=1.0
    ).item() == pytest.approx(np.exp(-3))


def test_importance_weights_follow_the_temperature(world: World) -> None:
    student, teacher = (logits / 0.7 for logits in world.logits())
    hot = minillm_loss(*world.logits(), world.tokens, world.lengths, teacher_mix=0.2, temperature=0.7)
    same(hot, minillm_loss(student, teacher, world.tokens, world.lengths, teacher_mix=0.2), 1e-12)


def test_one_step_weights_are_the_published_approximation(world: World) -> None:
    single = expected(world, mix=0.2, long_term=False)
    same(single, MIXED_SINGLE, PRINTED)
    same(expected(world, mix=0.2, single_step=False, length_norm=False), MIXED_LONG, PRINTED)
    whole = gradient(world, world.divergence())
    for mix, error in ((0.2, 0.240), (0.5, 0.59)):
        found = expected(world, mix=mix, length_norm=False)
        assert ((found - whole).norm() / whole.norm()).item() == pytest.approx(error, abs=5e-3)


@pytest.mark.parametrize("mix", [0.2, 0.5, 0.9])
def test_per_decision_weights_have_no_bias(world: World, mix: float) -> None:
    whole = gradient(world, world.divergence())
    same(expected(world, mix=mix, length_norm=False, importance="per_decision"), whole, 1e-12)
    assert (expected(world, mix=mix, length_norm=False, importance="none") - whole).norm() > 0.1
    # The product of the whole answer's ratios has none either; that of the prefix has, in the long term alone.
    student, teacher = world.logits()
    ratios = importance(world.label_logprobs(student).detach(), world.label_logprobs(teacher), world.lengths, teacher_mix=mix)
    losses = minillm_loss(student, teacher, world.tokens, world.lengths, length_norm=False)
    same(gradient(world, (world.probability(mix) * ratios.prod(1) * losses).sum()), whole, 1e-12)


def test_a_prefix_is_weighed_by_the_tokens_before_it(world: World) -> None:
    student_logprobs, teacher_logprobs = (world.label_logprobs(logits).detach() for logits in world.logits())
    settings = MiniLLMConfig(importance="per_decision", length_norm=False)
    table = credit_table(student_logprobs, teacher_logprobs, world.lengths, settings, drawn=Drawn(0.2), width=3)
    ratio = importance(student_logprobs, teacher_logprobs, world.lengths, teacher_mix=0.2)
    same(table.reach_BT, torch.stack([torch.ones(15).double(), ratio[:, 0], ratio[:, 0] * ratio[:, 1]], 1), 1e-15)
    assert (table.weight_BT == 1).all()


def test_prefix_products_are_exact_for_the_single_step_alone(world: World) -> None:
    student, teacher = world.logits()
    student_logprobs, teacher_logprobs = world.label_logprobs(student), world.label_logprobs(teacher)
    trail = importance(student_logprobs.detach(), teacher_logprobs, world.lengths, teacher_mix=0.2).cumprod(1)
    per_token = reverse_kl(*(torch.log_softmax(logits, -1).flatten(0, 1) for logits in (student, teacher))).view(15, 3)
    weights = (world.probability(0.2)[:, None] * trail * world.mask).detach()
    same(gradient(world, (weights * per_token).sum()), expected(world, long_term=False), 1e-12)
    student, teacher = world.logits()
    student_logprobs = world.label_logprobs(student)
    earned = returns(
        rewards(student_logprobs.detach(), teacher_logprobs, world.lengths, scale=1.0, clip=None),
        world.lengths,
        gamma=1.0,
        credit="next",
        length_norm=False,
    )
    found, long = (
        gradient(world, -(weights * earned * student_logprobs).sum()),
        expected(world, single_step=False, length_norm=False),
    )
    assert ((found - long).norm() / long.norm()).item() == pytest.approx(0.458, abs=5e-3)


@pytest.mark.parametrize(("mix", "figures"), [(0.2, (0.398, 0.412)), (0.5, (0.384, 0.479))])
def test_a_weight_on_the_single_step_only_adds_noise(world: World, mix: float, figures: tuple[float, float]) -> None:
    probability, found = world.probability(mix), []
    for weighted in (False, True):
        student, teacher = world.logits()
        ratio = importance(
            world.label_logprobs(student).detach(), world.label_logprobs(teacher), world.lengths, teacher_mix=mix
        )
        per_token = reverse_kl(*(torch.log_softmax(logits, -1).flatten(0, 1) for logits in (student, teacher))).view(15, 3)
        losses = (per_token * world.mask * (ratio if weighted else 1)).sum(1)
        found.append(spread_of(world, losses, probability))
    same(found[0][0], found[1][0], 1e-12)
    assert (found[0][1], found[1][1]) == pytest.approx(figures, abs=5e-4)


# The bound on the ratio


def test_at_the_first_step_a_clip_changes_nothing_on_own_samples(world: World) -> None:
    same(expected(world, clip=0.2), expected(world), 1e-15)


def test_the_clip_stops_the_gradient_beyond_its_bounds() -> None:
    student_logprobs = torch.tensor([-1.0]).double()
    for liked in (0.1, 1 / 6 - 1e-3, 1 / 6 + 1e-3, 1.0, 2.25 - 1e-2, 2.25 + 1e-2, 9.0):
        for advantage in (1.0, -1.0):
            logprob = student_logprobs.clone().requires_grad_()
            weight = importance(
                student_logprobs[:, None], (student_logprobs + np.log(liked))[:, None], torch.tensor([1]), teacher_mix=0.2
            )[0]
            loss = surrogate(logprob, student_logprobs, torch.tensor([advantage]).double(), weight, clip=0.2)
            slope = torch.autograd.grad(loss.sum(), logprob)[0].item()
            held = (advantage > 0 and liked < 1 / 6) or (advantage < 0 and liked > 2.25)
            assert (slope == 0) == held, (liked, advantage)


def test_ratios_are_relative_to_the_old_student(world: World) -> None:
    student, teacher = world.logits()
    old = world.label_logprobs(student).detach() - 0.3 * world.mask.double()
    found = minillm_loss(student, teacher, world.tokens, world.lengths, old_logprobs_BT=old, single_step=False)
    earned = returns(
        rewards(old, world.label_logprobs(teacher), world.lengths, scale=1.0, clip=None),
        world.lengths,
        gamma=1.0,
        credit="next",
        length_norm=True,
    )
    same(found, -(earned * np.exp(0.3) * world.mask).sum(1), 1e-12)


# Whitening


def test_whitening_is_over_tokens_or_over_the_padded_table() -> None:
    lengths, values = torch.tensor([3, 1]), torch.tensor([[1.0, 2.0, 6.0, 99.0], [3.0, 99.0, 99.0, 99.0]]).double()
    mask = torch.arange(4) < lengths[:, None]
    masked = whiten(values, lengths, how="masked", width=4)[mask]
    assert masked.mean().item() == pytest.approx(0, abs=1e-12) and masked.var(correction=0).item() == pytest.approx(1, abs=1e-6)
    padded = whiten(values, lengths, how="padded", width=4)[mask]
    table = torch.where(mask, values, 0)
    same(padded, ((table - table.mean()) / (table.var(correction=0) + 1e-8).sqrt())[mask], 1e-12)
    wider = whiten(values, lengths, how="padded", width=8)[mask]
    table = torch.cat([table, torch.zeros(2, 4)], 1)
    same(wider, ((table - table.mean()) / (table.var(correction=0) + 1e-8).sqrt())[:, :4][mask], 1e-12)
    assert whiten(values, lengths, how="none", width=4) is values


@pytest.mark.parametrize("whitening", ["masked", "padded"])
def test_whitening_removes_the_scale_of_the_rewards(world: World, whitening: Any) -> None:
    student, teacher = (world.label_logprobs(logits).detach() for logits in world.logits())

    def advantage(scale: float) -> Tensor:
        settings = MiniLLMConfig(whitening=whitening, reward_scale=scale)
        return credit_table(student, teacher, world.lengths, settings, drawn=Drawn(0.2), width=3).advantage_BT

    same(advantage(0.5)[world.mask], advantage(1.0)[world.mask], 1e-6)


def test_rewards_are_scaled_and_clamped() -> None:
    student_logprobs, teacher_logprobs = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-9.0, -2.0, -0.5]])
    assert rewards(student_logprobs, teacher_logprobs, torch.tensor([3]), scale=0.5, clip=10.0).tolist() == [[-10.0, -2.0, 1.0]]


# The whole


def test_exact_gradients_lead_to_the_least_divergence(world: World) -> None:
    optimizer = torch.optim.LBFGS([world.parameters], lr=0.5, max_iter=200, tolerance_grad=1e-9, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        world.parameters.grad = expected(world, length_norm=False)
        return world.divergence().detach()

    before = world.divergence().item()
    optimizer.step(closure)
    assert gradient(world, world.divergence()).abs().max() < 1e-6
    nearby = [world.divergence(world.parameters + 0.05 * torch.randn(5).double()).item() for _ in range(20)]
    assert world.divergence().item() < min(*nearby, 0.8 * before)


def test_samples_give_the_expectation_within_their_error(world: World) -> None:
    rng, count = np.random.default_rng(1), 10_000
    drawn = torch.tensor(rng.choice(15, size=count, p=world.probability(0.2).numpy()))
    losses = minillm_loss(*world.logits(), world.tokens, world.lengths, teacher_mix=0.2)
    rows = torch.stack([torch.autograd.grad(loss, world.parameters, retain_graph=True)[0] for loss in losses])[drawn]
    error = rows.std(0) / count**0.5
    assert ((rows.mean(0) - expected(world, mix=0.2)).abs() < 3 * error).all()


def test_half_logits_are_computed_in_float32(world: World) -> None:
    student, teacher = (logits.detach() for logits in world.logits())
    exact = minillm_loss(student, teacher, world.tokens, world.lengths)
    same(minillm_loss(student.float(), teacher.float(), world.tokens, world.lengths).double(), exact, 1e-5)
    half = minillm_loss(student.bfloat16(), teacher.bfloat16(), world.tokens, world.lengths)
    assert half.dtype == torch.float32  # arithmetic after the logits is never in half
    rounded = minillm_loss(student.bfloat16().double(), teacher.bfloat16().double(), world.tokens, world.lengths)
    same(half.double(), rounded, 1e-5)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"teacher_mix": 1.2}, "teacher_mix is 1.2"),
        ({"lengths_B": torch.tensor([4] * 15)}, "from 0 to 3"),
        ({"lengths_B": torch.tensor([1])}, "15 numbers"),
        ({"old_logprobs_BT": torch.zeros(15, 2)}, "old_logprobs_BT is (15, 2)"),
        ({"teacher_logits_BTV": torch.zeros(15, 4, 3)}, "teacher_logits_BTV is (15, 4)"),
        ({"gama": 0.9}, "gama"),
        ({"single_step": False, "long_term": False}, "nothing to learn"),
        ({"clip": 1.5}, "clip"),
    ],
)
def test_unusable_arguments_are_refused(world: World, changes: dict[str, Any], part: str) -> None:
    student, teacher = world.logits()
    given: dict[str, Any] = {"student_logits_BTV": student, "teacher_logits_BTV": teacher}
    given |= {"tokens_BT": world.tokens, "lengths_B": world.lengths}
    with pytest.raises(ValueError, match=re.escape(part)):
        minillm_loss(**(given | changes))
