"""Divergences through a mixture: limits, bounds, and exactness near the ends."""

import math

import pytest
import torch
from torch import Tensor

from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.losses.mixtures import jsd, jsd_normalised, log_mixture, skew_forward_kl, skew_reverse_kl
from tests.support.divergences import INF, Divergence, gradient, random_logits, random_tables

DISJOINT = torch.tensor([[1.0, 0.0]]).double().log(), torch.tensor([[0.0, 1.0]]).double().log()


def test_a_mixture_excludes_the_classes_that_both_exclude() -> None:
    first, second = torch.tensor([[1.0, 0.0, 0.0]]).log(), torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert log_mixture(first, second, 0.2).exp().tolist()[0] == pytest.approx([0.6, 0.4, 0.0])
    assert log_mixture(first, second, 0.2)[0, 2] == -INF


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6])
def test_normalised_jsd_in_float32_near_its_ends(beta: float) -> None:
    student, teacher = (4 * logits.detach() for logits in random_logits(50, 1000))

    def found(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        logits = student.to(dtype).requires_grad_()
        values = jsd_normalised(logits.log_softmax(-1), teacher.to(dtype).log_softmax(-1), beta=beta)
        return values.detach().double(), torch.autograd.grad(values.sum(), logits)[0].double()

    for single, double in zip(found(torch.float32), found(torch.float64), strict=True):
        torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-5)
    if beta == 0.5:
        tables = student.log_softmax(-1), teacher.log_softmax(-1)
        torch.testing.assert_close(jsd_normalised(*tables, beta=0.5), 4 * jsd(*tables, beta=0.5))


@pytest.mark.parametrize("beta", [1e-6, 1 - 1e-6])
def test_jsd_over_its_weight_tends_to_the_kls(beta: float) -> None:
    student, teacher = random_tables()
    limit = forward_kl(student, teacher) if beta < 0.5 else reverse_kl(student, teacher)
    torch.testing.assert_close(jsd(student, teacher, beta=beta) / 1e-6, limit, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(jsd_normalised(student, teacher, beta=beta), limit, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(jsd_normalised(student, teacher, beta=round(beta)), limit, rtol=0, atol=0)


@pytest.mark.parametrize(("skew", "kl"), [(skew_forward_kl, forward_kl), (skew_reverse_kl, reverse_kl)])
def test_a_skew_divergence_runs_from_its_kl_to_zero(skew: Divergence, kl: Divergence) -> None:
    student, teacher = random_tables()
    for alpha in (0, 1e-9):
        torch.testing.assert_close(skew(student, teacher, alpha=alpha), kl(student, teacher), rtol=2e-5, atol=1e-9)  # type: ignore[call-arg]
    torch.testing.assert_close(skew(student, teacher, alpha=1 - 1e-12), torch.zeros(6).double(), rtol=0, atol=1e-9)  # type: ignore[call-arg]


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_is_at_most_the_entropy_of_a_coin(beta: float) -> None:
    student, teacher = random_tables(500)
    coin = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert (jsd(student, teacher, beta=beta) <= coin).all()
    assert jsd(*DISJOINT, beta=beta).item() == pytest.approx(coin)


def test_jsd_with_both_weights_and_both_models_swapped_is_the_same() -> None:
    student, teacher = random_tables(500)
    torch.testing.assert_close(jsd(student, teacher, beta=0.3), jsd(teacher, student, beta=0.7))


def test_skew_divergences_and_their_gradient_are_bounded() -> None:
    assert skew_forward_kl(*DISJOINT, alpha=0.1).item() == pytest.approx(-math.log(0.1))
    assert skew_reverse_kl(*DISJOINT, alpha=0.1).item() == pytest.approx(-math.log(0.1))
    student, teacher = random_logits(500)
    slope = gradient(lambda q, p: skew_forward_kl(q, p, alpha=0.1), student, teacher)
    assert (slope.abs() <= student.detach().softmax(-1) * 9 + 1e-12).all()


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


def test_endpoints_of_jsd_on_request() -> None:
    student, teacher = random_tables()
    assert torch.equal(jsd(student, teacher, beta=0, endpoint="kl"), forward_kl(student, teacher))
    assert torch.equal(jsd(student, teacher, beta=1, endpoint="kl"), reverse_kl(student, teacher))


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        (jsd, {"beta": 0}, "beta of jsd is 0; .* type=jsd_normalised"),
        (jsd, {"beta": 1}, "beta of jsd is 1; "),
        (jsd, {"beta": 1.5, "endpoint": "kl"}, "beta of jsd is 1.5; "),
        (jsd_normalised, {"beta": 1.1}, "beta is 1.1; .* less than or equal to 1"),
        (skew_forward_kl, {"alpha": 1}, "alpha is 1; .* less than 1"),
        (skew_reverse_kl, {"alpha": -0.1}, "alpha is -0.1; .* greater than or equal to 0"),
    ],
)
def test_weights_out_of_range_are_refused(function: Divergence, options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        function(*random_tables(), **options)
