"""The alpha-beta family: members that are other divergences, limits, and bounded logarithms."""

import pytest
import torch

from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.losses.powers import alpha_beta
from tests.support.divergences import INF, random_tables


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
def test_excluded_classes_are_bounded_for_every_alpha_and_beta(alpha: float, beta: float) -> None:
    student = torch.tensor([[0.0, -INF, -INF], [0.0, 1.0, -INF]], requires_grad=True)
    teacher = torch.tensor([[-INF, 0.0, -INF], [-INF, -INF, 0.0]])
    values = alpha_beta(student.log_softmax(-1), teacher.log_softmax(-1), alpha=alpha, beta=beta)
    assert values.isfinite().all() and (values > 1).all()
    assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


def test_members_of_the_family_are_other_divergences() -> None:
    student, teacher = random_tables()
    members = {
        (1, 0): forward_kl(student, teacher),
        (0, 1): reverse_kl(student, teacher),
        (0.5, 0.5): 4 * (1 - (student + teacher).div(2).exp().sum(-1)),
        (1, 1): (student.exp() - teacher.exp()).square().sum(-1) / 2,
    }
    for (alpha, beta), member in members.items():
        found = alpha_beta(student, teacher, alpha=alpha, beta=beta)
        torch.testing.assert_close(found, member, rtol=2e-5, atol=1e-9, msg=f"{alpha} {beta}")


@pytest.mark.parametrize(
    ("near", "limit"),
    [((1e-5, 0.5), (0, 0.5)), ((0.5, 1e-5), (0.5, 0)), ((0.5, -0.5 + 1e-5), (0.5, -0.5)), ((1e-4, 1e-4), (0, 0))],
)
def test_the_family_is_continuous_where_an_exponent_or_the_sum_is_zero(
    near: tuple[float, float], limit: tuple[float, float]
) -> None:
    found, wanted = (alpha_beta(*random_tables(), alpha=alpha, beta=beta) for alpha, beta in (near, limit))
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("alpha", "beta", "sentence"),
    [
        (INF, 0.7, "alpha is inf; input should be a finite number"),
        (0.2, -INF, "beta is -inf; input should be a finite number"),
        (0.2, float("nan"), "beta is nan"),
        (-1, 0.9, r"alpha \+ beta of alpha_beta is -0.1; a sum below 0 overflows"),
    ],
)
def test_exponents_that_overflow_are_refused(alpha: float, beta: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        alpha_beta(*random_tables(), alpha=alpha, beta=beta)
