"""The sampled token's loss by enumeration: its expected gradient under the student is known for a vocabulary this small."""

import doctest

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

import minidist.losses.estimators as module
from minidist.losses import forward_kl, k2, reverse_kl
from minidist.losses.objectives import K2
from minidist.losses.targets import Divergence, TokenTargets

V = 6


def tables(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of the student, log-probabilities of the teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, V, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher.log_softmax(-1)


def expected_gradient(student: Tensor, losses_V: Tensor) -> Tensor:
    """Mean over tokens sampled from the student of the gradient of each token's loss."""
    chances = student.detach().softmax(-1)
    return sum(chance * grad(loss, student, retain_graph=True)[0] for chance, loss in zip(chances, losses_V, strict=True))  # type: ignore[return-value]


def gradient_of(divergence: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    return grad(divergence(student.log_softmax(-1)[None], teacher[None]).sum(), student)[0]


def every_token(student: Tensor, teacher: Tensor) -> Tensor:
    """K2 of each token of the vocabulary."""
    labels = torch.arange(V)
    return K2()(student.log_softmax(-1).expand(V, V), TokenTargets(labels, teacher_logprob_N=teacher[labels]))


@pytest.mark.parametrize("seed", range(5))
def test_expected_gradient_of_k2_is_that_of_the_reverse_kl(seed: int) -> None:
    student, teacher = tables(seed)
    got = expected_gradient(student, every_token(student, teacher))
    ratio = student.detach().log_softmax(-1) - teacher
    chances = student.detach().softmax(-1)
    closed = chances * (ratio - (chances * ratio).sum())
    assert (got - closed).abs().max() < 1e-8
    assert (got - gradient_of(reverse_kl, student, teacher)).abs().max() < 1e-8
    assert (got - gradient_of(forward_kl, student, teacher)).abs().max() > 1e-2


@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_have_wrong_expected_gradients(seed: int) -> None:
    student, teacher = tables(seed)
    ratio = teacher - student.log_softmax(-1)
    assert expected_gradient(student, -ratio).abs().max() < 1e-12, "k1 teaches nothing"
    k3 = expected_gradient(student, ratio.exp() - 1 - ratio)
    assert (k3 - gradient_of(forward_kl, student, teacher)).abs().max() < 1e-8, "k3 teaches the other KL"


def test_k2_gives_the_teacher_no_gradient() -> None:
    student, teacher = torch.tensor([-1.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    k2(student, teacher).sum().backward()
    assert student.grad.item() == 2
    assert teacher.grad is None


def test_k2_is_zero_where_both_models_agree() -> None:
    student, _ = tables(0)
    assert every_token(student, student.detach().log_softmax(-1)).abs().max() == 0


def test_docstring_examples() -> None:
    done = doctest.testmod(module)
    assert done.attempted >= 1
    assert done.failed == 0
