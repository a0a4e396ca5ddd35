"""Chunk by chunk equals the whole, in value and gradient."""

import pytest
import torch
from torch import Tensor

from minidist.losses import Match, Supervised, chunked_loss, forward_kl, reverse_kl
from minidist.protocols import Objective

N, D, E, V = 11, 6, 5, 9
OBJECTIVES = {
    "forward": Match(forward_kl),
    "reverse": Match(reverse_kl),
    "supervised": Supervised(),
    "forward, warm": Match(forward_kl, 2.0),
    "reverse, cold": Match(reverse_kl, 0.5),
    "supervised, warm": Supervised(2.0),
}


def made() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student hidden states and head, teacher hidden states and head, labels."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, taught, theirs = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((N, D), (V, D), (N, E), (V, E))
    )
    return hidden, weight, taught, theirs, torch.randint(0, V, (N,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 4, 5, 10, 11, 100])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunks_equal_the_whole(name: str, chunk: int) -> None:
    objective: Objective = OBJECTIVES[name]
    hidden, weight, taught, theirs, labels = made()
    terms = chunked_loss(
        objective,
        lambda states: states @ weight.T,
        hidden,
        labels,
        teacher_head=lambda states: states @ theirs.T,
        teacher_hidden_NE=taught,
        chunk_tokens=chunk,
    )
    terms.loss.backward()
    got = terms.loss.detach(), hidden.grad, weight.grad

    assert taught.grad is None and theirs.grad is None, "the teacher is frozen"
    assert not terms.logprob.requires_grad and not terms.teacher_logprob.requires_grad
    hidden.grad = weight.grad = None
    student = (hidden @ weight.T / objective.temperature).log_softmax(-1)
    teacher = (taught @ theirs.T / objective.temperature).log_softmax(-1).detach()
    whole = objective(student, labels, teacher).sum()
    whole.backward()
    assert all(torch.allclose(*pair) for pair in zip(got, (whole.detach(), hidden.grad, weight.grad), strict=True))
    assert terms.tokens == N
    assert torch.allclose(terms.logprob, student[range(N), labels].sum())
    assert torch.allclose(terms.teacher_logprob, teacher[range(N), labels].sum())


def test_without_a_teacher_there_is_no_teacher_figure() -> None:
    hidden, weight, _, _, labels = made()
    assert chunked_loss(Supervised(), lambda states: states @ weight.T, hidden, labels).teacher_logprob is None


def test_logits_of_the_whole_never_exist() -> None:
    hidden, weight, _, _, labels = made()
    seen: list[int] = []

    def head(states: Tensor) -> Tensor:
        seen.append(len(states))
        return states @ weight.T

    chunked_loss(Supervised(), head, hidden, labels, chunk_tokens=4).loss.backward()
    assert max(seen) == 4
