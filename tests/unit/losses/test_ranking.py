"""The ranking loss: every pair written out, its gradient, and its minimum at the teacher's order."""

import doctest
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from minidist.losses import ranking
from minidist.losses.ranking import agreement, ranking_loss

LINKS: dict[str, Any] = {
    "reverse_kl": math.log,
    "forward_kl": lambda u: -1 / u,
    "jsd": lambda u: math.log(2 * u / (1 + u)),
    "alpha": lambda u: (1 - u**-0.5) / 0.5,
}
EVERY = pytest.mark.parametrize("f", LINKS)


def drawn(prompts: int = 3, answers: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = -5 * torch.rand(2, prompts, answers, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher, torch.randint(1, 6, (prompts, answers), generator=generator)


loss_of = partial(ranking_loss, beta=2.0, alpha=0.5)


@EVERY
def test_the_loss_is_the_mean_over_all_pairs(f: Any) -> None:
    student, teacher, lengths = drawn()
    student_means, teacher_means = (student / lengths).exp().tolist(), (teacher / lengths).tolist()
    wanted = []
    for student_mean, teacher_mean in zip(student_means, teacher_means, strict=True):
        pairs = [(w, x) for w in range(4) for x in range(4) if teacher_mean[w] > teacher_mean[x]]
        losses = [math.log1p(math.exp(-1.5 * (LINKS[f](student_mean[w]) - LINKS[f](student_mean[x])))) for w, x in pairs]
        wanted.append(sum(losses) / len(pairs))
    assert loss_of(student, teacher, lengths, f=f, beta=1.5).tolist() == pytest.approx(wanted, rel=1e-12)


@EVERY
def test_descent_leads_the_student_to_the_teachers_order(f: Any) -> None:
    student, teacher, lengths = drawn()
    first = agreement(student.detach(), teacher, lengths)
    losses = []
    optimizer = torch.optim.SGD([student], lr=0.3)
    for _ in range(300):
        loss = loss_of(student, teacher, lengths, f=f).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] and agreement(student.detach(), teacher, lengths) == 1 > first


@EVERY
def test_the_gradient_is_that_of_finite_differences(f: Any) -> None:
    student, teacher, lengths = drawn()
    assert torch.autograd.gradcheck(lambda table: loss_of(table, teacher, lengths, f=f), student)


def test_answers_that_are_equally_likely_for_the_teacher_have_loss_zero() -> None:
    same = torch.full((2, 3), -2.0)
    student = torch.tensor([[-1.0, -2.0, -3.0]] * 2, requires_grad=True)
    loss = loss_of(student, same, torch.ones(2, 3), f="reverse_kl")
    loss.sum().backward()
    assert loss.tolist() == [0, 0] and student.grad is not None and not student.grad.any()


def test_answers_to_different_prompts_are_not_compared() -> None:
    student, teacher, lengths = drawn()
    together = loss_of(student, teacher, lengths, f="reverse_kl")
    for row in range(3):
        part = slice(row, row + 1)
        assert torch.equal(loss_of(student[part], teacher[part], lengths[part], f="reverse_kl"), together[part])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"beta": 0.0}, "beta is 0.0; .* greater than 0"), ({"alpha": 1.0}, "alpha is 1.0; .* less than 1")],
)
def test_options_out_of_range_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        loss_of(*drawn(), **({"f": "alpha"} | options))  # type: ignore[arg-type]


def test_unequal_shapes_are_refused() -> None:
    student, teacher, lengths = drawn()
    with pytest.raises(ValueError, match="same shape"):
        loss_of(student, teacher[:2], lengths, f="reverse_kl")


def test_docstring_examples() -> None:
    done = doctest.testmod(ranking, globs={"torch": torch, "ranking_loss": ranking_loss})
    assert done.attempted and done.failed == 0
