"""The pairwise loss of answers that the teacher ranks."""

import doctest
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from minidist.losses import ranking, ranking_loss
from minidist.losses.ranking import agreement

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


@EVERY
def test_every_pair_written_out(f: Any) -> None:
    student, teacher, lengths = drawn()
    own, theirs = (student / lengths).exp().tolist(), (teacher / lengths).tolist()
    wanted = []
    for said, heard in zip(own, theirs, strict=True):
        pairs = [(w, x) for w in range(4) for x in range(4) if heard[w] > heard[x]]
        losses = [math.log1p(math.exp(-1.5 * (LINKS[f](said[w]) - LINKS[f](said[x])))) for w, x in pairs]
        wanted.append(sum(losses) / len(pairs))
    assert ranking_loss(student, teacher, lengths, f=f, beta=1.5).tolist() == pytest.approx(wanted, rel=1e-12)


@EVERY
def test_it_falls_as_the_student_comes_to_the_teachers_order(f: Any) -> None:
    student, teacher, lengths = drawn()
    first = agreement(student.detach(), teacher, lengths)
    losses = []
    optimizer = torch.optim.SGD([student], lr=0.3)
    for _ in range(300):
        loss = ranking_loss(student, teacher, lengths, f=f).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] and agreement(student.detach(), teacher, lengths) == 1 > first


@EVERY
def test_gradcheck(f: Any) -> None:
    student, teacher, lengths = drawn()
    assert torch.autograd.gradcheck(lambda table: ranking_loss(table, teacher, lengths, f=f), student)


def test_answers_that_the_teacher_finds_equal_say_nothing() -> None:
    same = torch.full((2, 3), -2.0)
    student = torch.tensor([[-1.0, -2.0, -3.0]] * 2, requires_grad=True)
    loss = ranking_loss(student, same, torch.ones(2, 3))
    loss.sum().backward()
    assert loss.tolist() == [0, 0] and student.grad is not None and not student.grad.any()


def test_a_prompts_answers_are_compared_with_one_another_only() -> None:
    student, teacher, lengths = drawn()
    together = ranking_loss(student, teacher, lengths)
    for row in range(3):
        part = slice(row, row + 1)
        assert torch.equal(ranking_loss(student[part], teacher[part], lengths[part]), together[part])


@pytest.mark.parametrize(("options", "part"), [({"beta": 0.0}, "beta is above 0"), ({"alpha": 1.0}, "between 0 and 1")])
def test_out_of_range(options: dict[str, float], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        ranking_loss(*drawn(), **options)  # type: ignore[arg-type]


def test_other_shapes() -> None:
    student, teacher, lengths = drawn()
    with pytest.raises(ValueError, match="same shape"):
        ranking_loss(student, teacher[:2], lengths)


def test_docstring_examples() -> None:
    done = doctest.testmod(ranking, globs={"torch": torch, "ranking_loss": ranking_loss})
    assert done.attempted and done.failed == 0
