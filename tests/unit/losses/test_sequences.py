"""Losses of tokens against divergences of whole answers, in the enumerated world: what f-DISTILL and sampled tokens rest on."""

import math

import pytest
import torch
from torch import Tensor

from minidist.losses import forward_kl, reverse_kl, skew_forward_kl, skew_reverse_kl, total_variation
from minidist.losses.targets import Divergence, TokenCredit, TokenTargets
from tests.support.config import make_objective
from tests.support.world import World, golden


def tables(world: World) -> tuple[Tensor, Tensor]:
    """Log-probabilities of student and teacher at every token that counts, [N, 3]."""
    student, teacher = (logits.log_softmax(-1)[world.mask] for logits in world.logits())
    return student, teacher


def expected(world: World, divergence: Divergence, weights: Tensor) -> Tensor:
    """Sum of the divergence over an answer's tokens, in expectation over answers."""
    return (divergence(*tables(world)) * weights[:, None].expand(-1, 3)[world.mask]).sum()


def answers(world: World) -> tuple[Tensor, Tensor]:
    """Log-probabilities of whole answers under student and teacher."""
    student, teacher = (world.label_logprobs(logits).sum(1) for logits in world.logits())
    return student, teacher


def test_step_by_step_kl_is_that_of_the_answers() -> None:
    """f-DISTILL's decompositions: exact for both KLs, each on the text of the one it expects over."""
    world = golden()
    student, teacher = answers(world)
    own, teacher_text = world.probability(0.0), world.probability(1.0)
    assert expected(world, reverse_kl, own).item() == pytest.approx(
        (student.exp() * (student - teacher)).sum().item(), rel=1e-12
    )
    assert expected(world, forward_kl, teacher_text).item() == pytest.approx(
        (teacher.exp() * (teacher - student)).sum().item(), rel=1e-12
    )


def test_step_by_step_total_variation_bounds_that_of_the_answers() -> None:
    world = golden()
    student, teacher = answers(world)
    of_answers = (student.exp() - teacher.exp()).abs().sum() / 2
    for text in (world.probability(0.0), world.probability(1.0)):
        assert expected(world, total_variation, text) >= of_answers
    halves = [expected(world, total_variation, world.probability(mix)) for mix in (0.0, 1.0)]
    assert sum(halves) / 2 >= of_answers > 0


def test_both_skew_kls_at_one_half_are_the_jensen_shannon_divergence() -> None:
    """Half of both skew KLs at alpha 0.5 is the divergence to the half-and-half mixture, at one token: at most log 2."""
    student, teacher = tables(golden())
    mixture = torch.logaddexp(student, teacher) - math.log(2)
    halves = (skew_forward_kl(student, teacher, alpha=0.5) + skew_reverse_kl(student, teacher, alpha=0.5)) / 2
    written_out = ((teacher.exp() * (teacher - mixture)).sum(-1) + (student.exp() * (student - mixture)).sum(-1)) / 2
    assert torch.allclose(halves, written_out)
    assert (halves <= math.log(2)).all()


@pytest.mark.parametrize("name", ["k2", "policy_gradient"])
def test_sampled_tokens_have_the_gradient_of_the_reverse_kl(name: str) -> None:
    """Every token's gradient, in expectation over what the student writes: exact, answer by answer."""
    world = golden()
    own = world.probability(0.0)
    (wanted,) = torch.autograd.grad(expected(world, reverse_kl, own), world.parameters)
    student, teacher = tables(world)
    labels = world.tokens[world.mask]
    student_logprobs, teacher_logprobs = (table.detach().gather(-1, labels[:, None])[:, 0] for table in (student, teacher))
    ones = torch.ones_like(student_logprobs)
    credit = TokenCredit(student_logprobs, teacher_logprobs - student_logprobs, ones, ones)
    loss = make_objective(name)(student, TokenTargets(labels, teacher_logprob_N=teacher_logprobs, credit=credit))
    (found,) = torch.autograd.grad((loss * own[:, None].expand(-1, 3)[world.mask]).sum(), world.parameters)
    assert torch.allclose(found, wanted, rtol=1e-10)


def test_k1_and_k3_have_other_expected_gradients() -> None:
    """Why they are refused: an expected gradient of zero, and that of the forward KL."""
    student, teacher = (table[:1] for table in tables(golden()))
    logits = student.detach().clone().requires_grad_()
    own = logits.log_softmax(-1)
    weight = own.detach().exp()
    ratio = teacher - own
    (first,) = torch.autograd.grad((weight * -ratio).sum(), logits, retain_graph=True)
    (third,) = torch.autograd.grad((weight * (ratio.exp() - 1 - ratio)).sum(), logits)
    assert torch.allclose(first, torch.zeros_like(first), atol=1e-12)
    assert torch.allclose(third, own.exp() - teacher.exp())
