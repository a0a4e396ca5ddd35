"""Adaptive divergences: the head of AKL, the weights of ToDi, the gate on the teacher's entropy."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from minidist.losses import adaptive
from minidist.losses.adaptive import akl, entropy_gated, head_share, todi
from minidist.losses.costs import in_units
from minidist.losses.divergences import forward_kl, jeffreys, reverse_kl
from tests.support.divergences import Divergence, gradient, random_logits, random_tables

RELEASED = partial(akl, mu=0.5, head_rule="released")


def test_todi_is_jeffreys_but_for_the_weights_without_gradient() -> None:
    student, teacher = random_logits()

    def moving(q: Tensor, p: Tensor) -> Tensor:
        share = torch.sigmoid(p - q)
        return (share * p.exp() * (p - q) + (1 - share) * q.exp() * (q - p)).sum(-1)

    torch.testing.assert_close(gradient(moving, student, teacher), gradient(jeffreys, student, teacher))
    assert not torch.allclose(gradient(todi, student, teacher), gradient(jeffreys, student, teacher))


def test_todi_has_the_value_of_jeffreys() -> None:
    student, teacher = random_tables()
    torch.testing.assert_close(todi(student, teacher), jeffreys(student, teacher), rtol=2e-5, atol=1e-9)


def test_the_gate_is_open_from_entropy_zero_and_shut_from_log_c() -> None:
    student, teacher = random_tables()
    forward, reverse = forward_kl(student, teacher), reverse_kl(student, teacher)
    torch.testing.assert_close(entropy_gated(student, teacher, threshold=0.0), forward + reverse, rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(entropy_gated(student, teacher, threshold=math.log(7)), reverse, rtol=2e-5, atol=1e-9)


def by_hand(p: list[float], q: list[float], mu: float) -> dict[str, float]:
    """Both head rules as a loop over the sorted classes."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    gaps, mass, found = [abs(a - b) for a, b in zip(p, q, strict=True)], 0.0, {"released": 0.0, "paper": 0.0}
    for rank, index in enumerate(order):
        if rank == 0 or mass + p[index] <= mu:
            found["released"] += gaps[index]
        if mass < mu:
            found["paper"] += gaps[index]
        mass += p[index]
    return {rule: value / sum(gaps) for rule, value in found.items()}


def test_heads_of_akl_are_those_of_a_loop_over_the_classes() -> None:
    cases = [
        ([0.4, 0.3, 0.2, 0.1], [0.25] * 4, (0.375, 0.5)),
        ([0.3, 0.25, 0.2, 0.15, 0.1], [0.2, 0.3, 0.2, 0.2, 0.1], (0.5, 0.75)),
    ]
    for p, q, wanted in cases:
        tables = torch.tensor([q]).double().log(), torch.tensor([p]).double().log()
        found = [head_share(*tables, mu=0.5, head_rule=rule).item() for rule in ("released", "paper")]
        assert found == pytest.approx(wanted) and list(by_hand(p, q, 0.5).values()) == pytest.approx(wanted)
        assert head_share(*tables, mu=1e-9, head_rule="released").item() == pytest.approx(
            abs(p[0] - q[0]) / sum(abs(a - b) for a, b in zip(p, q, strict=True))
        )


def test_a_mass_of_exactly_mu_is_the_head() -> None:
    teacher = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    student = torch.tensor([[0.2, 0.4, 0.4]], dtype=torch.float64).log()
    for rule in ("released", "paper"):
        assert head_share(student, teacher, mu=0.5, head_rule=rule).item() == pytest.approx(0.5), rule


def test_mu_changes_akl() -> None:
    tables = random_tables(50, 40)
    assert not torch.allclose(RELEASED(*tables), akl(*tables, mu=0.4, head_rule="released"))


def test_a_head_share_is_at_most_one_when_sums_round() -> None:
    student, teacher = torch.randn(2, 500, 300, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    whole = head_share(student, teacher, mu=1.0, head_rule="paper")
    assert (whole <= 1).all() and (whole > 0.9999).all()


@pytest.mark.parametrize("head_rule", ["released", "paper"])
@pytest.mark.parametrize("mu", [0.2, 0.5, 0.95])
def test_few_sorted_classes_give_the_head_of_all(head_rule: adaptive.HeadRule, mu: float) -> None:
    student, teacher = random_tables(50, 200)
    whole = head_share(student, teacher, mu=mu, head_rule=head_rule, top=200)
    for top in (1, 16, 64):
        torch.testing.assert_close(head_share(student, teacher, mu=mu, head_rule=head_rule, top=top), whole)
    assert ((whole >= 0) & (whole <= 1)).all()
    assert head_share(student, student, mu=mu, head_rule=head_rule).tolist() == [0.5] * 50


def test_ties_keep_the_order_of_the_classes() -> None:
    teacher = torch.tensor([[0.1, 0.3, 0.3, 0.3], [0.25] * 4], dtype=torch.float64).log()
    student = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    # Heads: class 1 (gap 0) of gaps 0.3, 0, 0.1, 0.2; classes 0 and 1 (0.15 and 0.05) of 0.15, 0.05, 0.05, 0.15.
    for top in (1, 2, 3, 4):
        share = head_share(student, teacher, mu=0.5, head_rule="released", top=top)
        assert share.tolist() == pytest.approx([0.0, 0.5]), top
    generator = torch.Generator().manual_seed(0)
    levels = torch.randn(40, 200, generator=generator)
    levels.scatter_(-1, torch.rand(40, 200, generator=generator).argsort(-1)[:, :30], 4.0)  # the head is some of thirty equals
    student = torch.randn(40, 200, generator=generator).log_softmax(-1)
    found = [head_share(student, levels.log_softmax(-1), mu=0.4, head_rule="released", top=top) for top in (64, 200)]
    torch.testing.assert_close(*found)
    tied = torch.zeros(3, 500).log_softmax(-1)  # a head that ends among equals, most of which are not sorted at first
    other = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    for rule in ("released", "paper"):
        whole = head_share(other, tied, mu=0.05, head_rule=rule, top=500)
        torch.testing.assert_close(head_share(other, tied, mu=0.05, head_rule=rule), whole)
        first = (other.exp() - tied.exp()).abs()
        torch.testing.assert_close(whole, first[:, :25].sum(-1) / first.sum(-1), rtol=0.1, atol=0)


def test_akl_of_equal_gaps_is_the_mean_of_both_and_of_all_mass_the_forward_kl() -> None:
    teacher = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    student = torch.tensor([[0.3, 0.4, 0.3]], dtype=torch.float64).log()  # 0.2 in the head, 0.2 in the tail
    torch.testing.assert_close(RELEASED(student, teacher), jeffreys(student, teacher) / 2)
    teacher = torch.randn(64, 20_000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert bool((teacher.sort(-1, descending=True).values.exp().cumsum(-1) > 1).any()), "a sum rounds above one"
    logits = torch.zeros(64, 20_000).scatter(-1, teacher.argmin(-1, keepdim=True), 12.0)  # likely where the teacher's tail ends
    student = logits.log_softmax(-1)
    torch.testing.assert_close(akl(student, teacher, mu=1.0, head_rule="released"), forward_kl(student, teacher))


def test_weights_of_akl_are_held_fixed() -> None:
    student, teacher = random_logits()
    share = head_share(student.detach().log_softmax(-1), teacher.log_softmax(-1), mu=0.5, head_rule="released")[:, None]
    wanted = share * gradient(forward_kl, student, teacher) + (1 - share) * gradient(reverse_kl, student, teacher)
    assert (gradient(RELEASED, student, teacher) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (partial(akl, mu=0, head_rule="paper"), "mu is 0; .* greater than 0"),
        (partial(akl, mu=1.5, head_rule="released"), "mu is 1.5; .* less than or equal to 1"),
        (partial(entropy_gated, threshold=-1), "threshold is -1; .* greater than or equal to 0"),
    ],
)
def test_options_out_of_range_are_refused(call: Divergence, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(*random_tables())


@pytest.mark.parametrize("head_rule", ["released", "paper"])
def test_sums_in_whole_units_give_the_same_head(head_rule: adaptive.HeadRule, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU where results must be repeatable: it has no such kernel for running sums of floating-point numbers."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(40, 300, generator=generator).mul(2).log_softmax(-1) for _ in range(2))
    wanted = adaptive.head_share(student, teacher, mu=0.5, head_rule=head_rule)
    monkeypatch.setattr(adaptive, "running_sum", in_units)
    torch.testing.assert_close(adaptive.head_share(student, teacher, mu=0.5, head_rule=head_rule), wanted)
    row = teacher.exp().double()
    assert (in_units(row) - row.cumsum(-1)).abs().max() < 300 * 2.0**-50
