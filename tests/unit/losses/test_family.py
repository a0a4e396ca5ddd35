"""The divergences beyond the two KLs: closed-form gradients, limits, bounds, values by hand, and inputs at the edge."""

import doctest
import math
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

from minidist.losses import adaptive, divergences, mixtures, powers
from minidist.losses.adaptive import akl, entropy_gated, head_share, todi
from minidist.losses.divergences import forward_kl, jeffreys, reverse_kl, total_variation
from minidist.losses.mixtures import jsd, jsd_normalised, log_mixture, skew_forward_kl, skew_reverse_kl
from minidist.losses.powers import alpha_beta

Divergence = Callable[[Tensor, Tensor], Tensor]
INF = math.inf
FAMILY: dict[str, Divergence] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jeffreys": jeffreys,
    "total variation": total_variation,
    "jsd 0.1": partial(jsd, beta=0.1),
    "jsd 0.5": jsd,
    "jsd normalised 0": partial(jsd_normalised, beta=0),
    "jsd normalised 0.9": partial(jsd_normalised, beta=0.9),
    "skew forward": skew_forward_kl,
    "skew reverse": skew_reverse_kl,
    "skew reverse detached": partial(skew_reverse_kl, detach_mixture=True),
    "akl": akl,
    "akl paper": partial(akl, head_rule="paper"),
    "todi": todi,
    "gated": partial(entropy_gated, threshold=1.0),
    "alpha beta": alpha_beta,
    "alpha beta 1 1": partial(alpha_beta, alpha=1.0, beta=1.0),
    "alpha beta 0.5 -0.5": partial(alpha_beta, alpha=0.5, beta=-0.5),
    "alpha beta 0 0.5": partial(alpha_beta, alpha=0.0, beta=0.5),
    "alpha beta 0.5 0": partial(alpha_beta, alpha=0.5, beta=0.0),
    "alpha beta 0 0": partial(alpha_beta, alpha=0.0, beta=0.0),
}
WEIGHED = {"akl", "akl paper", "todi", "skew reverse detached"}  # part of whose value is held fixed in the gradient
EVERY = pytest.mark.parametrize("name", FAMILY)


def random_logits(rows: int = 6, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


def gradient(divergence: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    values = divergence(student.log_softmax(-1), teacher.log_softmax(-1))
    return torch.autograd.grad(values.sum(), student)[0]


def centred(q: Tensor, slope: Tensor) -> Tensor:
    """Gradient in the logits of what has this slope in log q, over q."""
    return q * (slope - (q * slope).sum(-1, keepdim=True))


@EVERY
def test_zero_when_equal_and_never_negative(name: str) -> None:
    student, teacher = random_logits(rows=300)
    divergence = FAMILY[name]
    q = student.log_softmax(-1)
    assert divergence(q, q).abs().max() < 1e-12
    assert gradient(divergence, student, student.detach()).abs().max() < 1e-12
    values = divergence(q, teacher.log_softmax(-1))
    assert values.shape == (300,) and (values > 0).all()


@pytest.mark.parametrize("name", sorted(FAMILY.keys() - WEIGHED))
def test_gradcheck(name: str) -> None:
    student, teacher = random_logits(3, 4)
    assert torch.autograd.gradcheck(lambda left: FAMILY[name](left.log_softmax(-1), teacher.log_softmax(-1)), (student,))


@EVERY
def test_order_of_classes_and_rows_of_others_change_nothing(name: str) -> None:
    student, teacher = (logits.detach().log_softmax(-1) for logits in random_logits())
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    values = FAMILY[name](student, teacher)
    torch.testing.assert_close(FAMILY[name](student[:, order], teacher[:, order]), values)
    torch.testing.assert_close(FAMILY[name](student[2:3], teacher[2:3]), values[2:3])


@EVERY
def test_a_class_that_both_exclude_changes_nothing(name: str) -> None:
    student, teacher = random_logits()
    shut = torch.full((6, 2), -INF, dtype=torch.float64)
    wide = torch.cat([student.detach(), shut], -1).requires_grad_()
    values = FAMILY[name](wide.log_softmax(-1), torch.cat([teacher, shut], -1).log_softmax(-1))
    if name != "alpha beta 0 0":  # where logarithms alone count, a class at the floor does
        tolerance = {"atol": 1e-9, "rtol": 1e-9} if "alpha" in name else {}
        torch.testing.assert_close(values, FAMILY[name](student.log_softmax(-1), teacher.log_softmax(-1)), **tolerance)
    slope = torch.autograd.grad(values.sum(), wide)[0]
    assert slope.isfinite().all() and slope[:, 7:].abs().max() < 1e-9


@pytest.mark.parametrize("name", sorted(FAMILY))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_with_nothing_in_common(name: str, dtype: torch.dtype) -> None:
    student = torch.tensor([[0.0, -INF, -INF], [0.0, 1.0, -INF], [5.0, 0.0, 1.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-INF, 0.0, -INF], [-INF, -INF, 0.0], [-INF, -INF, 0.0]], dtype=dtype)
    values = FAMILY[name](student.log_softmax(-1), teacher.log_softmax(-1))
    assert values.isfinite().all() and (values > 0).all()
    assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [
        (2.0, -1.0),
        (-1.0, 2.0),
        (-1.0, 1.0),
        (0.5, -0.5),
        (-0.5, 1.5),
        (1.0, -1.0),
        (0.0, 0.5),
        (1.0, 0.0),
        (0.0, 1.0),
        (0.0, 0.0),
    ],
)
def test_logarithms_of_nothing_are_bounded_in_every_alpha_and_beta(alpha: float, beta: float) -> None:
    student = torch.tensor([[0.0, -INF, -INF], [0.0, 1.0, -INF]], requires_grad=True)
    teacher = torch.tensor([[-INF, 0.0, -INF], [-INF, -INF, 0.0]])
    values = alpha_beta(student.log_softmax(-1), teacher.log_softmax(-1), alpha=alpha, beta=beta)
    assert values.isfinite().all() and (values > 1).all()
    assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("name", ["jeffreys", "todi"])
def test_large_where_one_excludes_what_the_other_allows(name: str) -> None:
    some = torch.tensor([[0.5, 0.3, 0.2]]).log()
    fewer = torch.tensor([[0.5, 0.5, 0.0]]).log()
    least, matched = math.log(2.0**-149), sum(p * math.log(p / q) for p, q in ((0.5, 0.5), (0.3, 0.5)))
    matched += sum(p * math.log(p / q) for p, q in ((0.5, 0.5), (0.5, 0.3)))
    found = FAMILY[name](some, fewer).item(), FAMILY[name](fewer, some).item()
    assert found == pytest.approx([matched + 0.2 * (math.log(0.2) - least)] * 2, rel=1e-5)
    logits = fewer.clone().requires_grad_()
    slope = torch.autograd.grad(FAMILY[name](logits.log_softmax(-1), some).sum(), logits)[0]
    assert slope.isfinite().all(), "what the student excludes has a gradient all the same"


def test_a_mixture_excludes_what_both_do() -> None:
    first, second = torch.tensor([[1.0, 0.0, 0.0]]).log(), torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert log_mixture(first, second, 0.2).exp().tolist()[0] == pytest.approx([0.6, 0.4, 0.0])
    assert log_mixture(first, second, 0.2)[0, 2] == -INF


def test_gradients_in_closed_form() -> None:
    student, teacher = random_logits()
    q, p = student.detach().softmax(-1), teacher.softmax(-1)
    log = (q / p).log()
    wanted = {"jeffreys": q - p + centred(q, log), "total variation": centred(q, 0.5 * (q - p).sign())}
    m = 0.1 * p + 0.9 * q
    wanted["jsd 0.1"] = 0.9 * centred(q, (q / m).log())
    wanted["skew forward"] = -0.9 * centred(q, p / m)
    m = 0.9 * p + 0.1 * q
    wanted["skew reverse"] = centred(q, (q / m).log() - 0.1 * q / m)
    wanted["skew reverse detached"] = centred(q, (q / m).log())
    share = p / (p + q)
    inner = (1 - share) * (log + 1)
    wanted["todi"] = -share * p + q * (share * p).sum(-1, keepdim=True) + centred(q, inner)
    h = -(p**0.2 * q**0.7 - q**0.9) / 0.2
    wanted["alpha beta"] = h - q * h.sum(-1, keepdim=True)
    wanted["jsd normalised 0.9"] = centred(q, (q / (0.9 * p + 0.1 * q)).log()) / 0.9
    unsure = -(p * p.log()).sum(-1, keepdim=True) > 1
    assert 0 < int(unsure.sum()) < len(p), "the gate is open for some"
    wanted["gated"] = centred(q, log) + unsure * (q - p)
    for name, slope in wanted.items():
        assert (gradient(FAMILY[name], student, teacher) - slope).abs().max() < 1e-12, name


def test_todi_is_jeffreys_but_for_what_is_held_fixed() -> None:
    student, teacher = random_logits()

    def moving(q: Tensor, p: Tensor) -> Tensor:
        share = torch.sigmoid(p - q)
        return (share * p.exp() * (p - q) + (1 - share) * q.exp() * (q - p)).sum(-1)

    torch.testing.assert_close(gradient(moving, student, teacher), gradient(jeffreys, student, teacher))
    assert not torch.allclose(gradient(todi, student, teacher), gradient(jeffreys, student, teacher))


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6])
def test_normalised_jsd_in_float32_near_its_ends(beta: float) -> None:
    student, teacher = (4 * logits.detach() for logits in random_logits(50, 1000))

    def found(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        given = student.to(dtype).requires_grad_()
        values = jsd_normalised(given.log_softmax(-1), teacher.to(dtype).log_softmax(-1), beta=beta)
        return values.detach().double(), torch.autograd.grad(values.sum(), given)[0].double()

    for single, double in zip(found(torch.float32), found(torch.float64), strict=True):
        torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-5)
    if beta == 0.5:
        tables = student.log_softmax(-1), teacher.log_softmax(-1)
        torch.testing.assert_close(jsd_normalised(*tables), 4 * jsd(*tables))


def test_limits() -> None:
    student, teacher = (logits.detach().log_softmax(-1) for logits in random_logits())
    forward, reverse = forward_kl(student, teacher), reverse_kl(student, teacher)
    limits: list[tuple[Tensor, Tensor]] = [
        (jsd(student, teacher, beta=1e-6) / 1e-6, forward),
        (jsd(student, teacher, beta=1 - 1e-6) / 1e-6, reverse),
        (jsd_normalised(student, teacher, beta=1e-6), jsd_normalised(student, teacher, beta=0)),
        (jsd_normalised(student, teacher, beta=1 - 1e-6), jsd_normalised(student, teacher, beta=1)),
        (skew_forward_kl(student, teacher, alpha=1e-9), forward),
        (skew_reverse_kl(student, teacher, alpha=1e-9), reverse),
        (skew_forward_kl(student, teacher, alpha=0), forward),
        (skew_reverse_kl(student, teacher, alpha=0), reverse),
        (alpha_beta(student, teacher, alpha=1, beta=0), forward),
        (alpha_beta(student, teacher, alpha=0, beta=1), reverse),
        (alpha_beta(student, teacher, alpha=0.5, beta=0.5), 4 * (1 - (student + teacher).div(2).exp().sum(-1))),
        (alpha_beta(student, teacher, alpha=1, beta=1), (student.exp() - teacher.exp()).square().sum(-1) / 2),
        (akl(student, teacher, mu=1.0), forward),
        (entropy_gated(student, teacher, threshold=0.0), forward + reverse),
        (entropy_gated(student, teacher, threshold=math.log(7)), reverse),
        (jeffreys(student, teacher), forward + reverse),
        (todi(student, teacher), forward + reverse),
        (skew_forward_kl(student, teacher, alpha=1 - 1e-12), torch.zeros(6).double()),
        (skew_reverse_kl(student, teacher, alpha=1 - 1e-12), torch.zeros(6).double()),
    ]
    for number, (found, limit) in enumerate(limits):
        torch.testing.assert_close(found, limit, rtol=1e-3 if number < 4 else 2e-5, atol=1e-9, msg=str(number))
    for left, right in (
        ((1e-5, 0.5), (0, 0.5)),
        ((0.5, 1e-5), (0.5, 0)),
        ((0.5, -0.5 + 1e-5), (0.5, -0.5)),
        ((1e-4, 1e-4), (0, 0)),
    ):
        near, at = (alpha_beta(student, teacher, alpha=a, beta=b) for a, b in (left, right))
        torch.testing.assert_close(near, at, rtol=2e-3, atol=1e-6)


def test_bounds() -> None:
    student, teacher = (logits.detach().log_softmax(-1) for logits in random_logits(500))
    for beta in (0.1, 0.5, 0.9):
        coin = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        assert (jsd(student, teacher, beta=beta) <= coin).all()
    assert (total_variation(student, teacher) <= 1).all()
    assert (
        total_variation(student, teacher).square()
        <= torch.minimum(*(kl(student, teacher) for kl in (forward_kl, reverse_kl))) / 2
    ).all()
    apart = torch.tensor([[1.0, 0.0]]).double().log(), torch.tensor([[0.0, 1.0]]).double().log()
    assert total_variation(*apart).item() == 1 and jsd(*apart).item() == pytest.approx(math.log(2))
    assert jsd(*apart, beta=0.1).item() == pytest.approx(0.325, abs=1e-3)
    assert skew_forward_kl(*apart).item() == skew_reverse_kl(*apart).item() == pytest.approx(-math.log(0.1))
    logits, other = random_logits(500)
    q = logits.detach().softmax(-1)
    assert (gradient(skew_forward_kl, logits, other).abs() <= q * 9 + 1e-12).all()
    torch.testing.assert_close(jsd(student, teacher, beta=0.3), jsd(teacher, student, beta=0.7))


def test_near_equality_every_jsd_is_a_share_of_the_kl() -> None:
    student = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)).double()
    teacher = (student + 1e-3 * torch.randn(4, 7, generator=torch.Generator().manual_seed(2))).log_softmax(-1)
    student = student.log_softmax(-1)
    for beta in (0.1, 0.5, 0.9):
        torch.testing.assert_close(
            jsd(student, teacher, beta=beta) / forward_kl(student, teacher),
            torch.full((4,), beta * (1 - beta)).double(),
            rtol=5e-3,
            atol=0,
        )


def by_hand(p: list[float], q: list[float], mu: float) -> dict[str, float]:
    """Both rules from a loop over the sorted classes."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    gaps, mass, found = [abs(a - b) for a, b in zip(p, q, strict=True)], 0.0, {"released": 0.0, "paper": 0.0}
    for place, index in enumerate(order):
        if place == 0 or mass + p[index] <= mu:
            found["released"] += gaps[index]
        if mass < mu:
            found["paper"] += gaps[index]
        mass += p[index]
    return {rule: value / sum(gaps) for rule, value in found.items()}


def test_heads_of_akl() -> None:
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


def test_a_mass_of_just_mu_is_the_head_and_mu_is_a_half() -> None:
    teacher = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    student = torch.tensor([[0.2, 0.4, 0.4]], dtype=torch.float64).log()
    for rule in ("released", "paper"):
        assert head_share(student, teacher, mu=0.5, head_rule=rule).item() == pytest.approx(0.5), rule
    student, teacher = (logits.detach().log_softmax(-1) for logits in random_logits(50, 40))
    assert torch.equal(akl(student, teacher), akl(student, teacher, mu=0.5, head_rule="released"))
    assert not torch.allclose(akl(student, teacher), akl(student, teacher, mu=0.4))


def test_a_share_is_no_more_than_all_when_sums_round() -> None:
    student, teacher = torch.randn(2, 500, 300, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    whole = head_share(student, teacher, mu=1.0, head_rule="paper")
    assert (whole <= 1).all() and (whole > 0.9999).all()


@pytest.mark.parametrize("head_rule", ["released", "paper"])
@pytest.mark.parametrize("mu", [0.2, 0.5, 0.95])
def test_few_sorted_classes_give_the_head_of_all(head_rule: adaptive.HeadRule, mu: float) -> None:
    student, teacher = (logits.detach().log_softmax(-1) for logits in random_logits(50, 200))
    whole = head_share(student, teacher, mu=mu, head_rule=head_rule, top=200)
    for top in (1, 16, 64):
        torch.testing.assert_close(head_share(student, teacher, mu=mu, head_rule=head_rule, top=top), whole)
    assert ((whole >= 0) & (whole <= 1)).all()
    assert head_share(student, student, mu=mu, head_rule=head_rule).tolist() == [0.5] * 50


def test_likely_alike_the_first_comes_first() -> None:
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
    torch.testing.assert_close(akl(student, teacher), jeffreys(student, teacher) / 2)
    teacher = torch.randn(64, 20_000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert bool((teacher.sort(-1, descending=True).values.exp().cumsum(-1) > 1).any()), "a sum rounds above one"
    logits = torch.zeros(64, 20_000).scatter(-1, teacher.argmin(-1, keepdim=True), 12.0)  # likely where the teacher's tail ends
    student = logits.log_softmax(-1)
    torch.testing.assert_close(akl(student, teacher, mu=1.0), forward_kl(student, teacher))


def test_weights_of_akl_are_held_fixed() -> None:
    student, teacher = random_logits()
    share = head_share(student.detach().log_softmax(-1), teacher.log_softmax(-1), mu=0.5, head_rule="released")[:, None]
    wanted = share * gradient(forward_kl, student, teacher) + (1 - share) * gradient(reverse_kl, student, teacher)
    assert (gradient(akl, student, teacher) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (partial(jsd, beta=0), "use jsd_normalised, or a KL"),
        (partial(jsd, beta=1), "beta of jsd is 1"),
        (partial(jsd_normalised, beta=1.1), "beta of jsd_normalised is 1.1"),
        (partial(skew_forward_kl, alpha=1), "alpha of skew_forward_kl is 1"),
        (partial(skew_reverse_kl, alpha=-0.1), "alpha of skew_reverse_kl is -0.1"),
        (partial(akl, mu=0), "mu of akl is 0"),
        (partial(akl, mu=1.5), "mu of akl is 1.5"),
        (partial(entropy_gated, threshold=-1), "threshold of entropy_gated is -1"),
        (partial(alpha_beta, alpha=INF), "finite numbers"),
        (partial(alpha_beta, beta=-INF), "finite numbers"),
        (partial(alpha_beta, beta=math.nan), "finite numbers"),
        (partial(alpha_beta, alpha=-1, beta=0.9), "sum is below 0"),
    ],
)
def test_what_is_out_of_range_is_refused(call: Divergence, part: str) -> None:
    student, teacher = (logits.detach().log_softmax(-1) for logits in random_logits())
    with pytest.raises(ValueError, match=part):
        call(student, teacher)


@EVERY
def test_other_shapes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="same shape"):
        FAMILY[name](torch.zeros(1, 3), torch.zeros(1, 2))


def test_endpoints_of_jsd_on_request() -> None:
    student, teacher = (logits.detach().log_softmax(-1) for logits in random_logits())
    assert torch.equal(jsd(student, teacher, beta=0, endpoint="kl"), forward_kl(student, teacher))
    assert torch.equal(jsd(student, teacher, beta=1, endpoint="kl"), reverse_kl(student, teacher))


@pytest.mark.parametrize("module", [divergences, mixtures, adaptive, powers])
def test_docstring_examples(module: ModuleType) -> None:
    done = doctest.testmod(module)
    assert done.attempted >= 2 and done.failed == 0
