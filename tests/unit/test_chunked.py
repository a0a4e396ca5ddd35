"""Chunk by chunk equals the whole, in value and gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from minidist.losses import K2, Match, Supervised, chunked_loss, forward_kl, reverse_kl
from minidist.protocols import Objective, TokenTargets

N, D, E, V = 11, 6, 5, 9
OBJECTIVES = {
    "forward": Match(forward_kl),
    "reverse": Match(reverse_kl),
    "supervised": Supervised(),
    "forward, warm": Match(forward_kl, 2.0),
    "reverse, cold": Match(reverse_kl, 0.5),
    "supervised, warm": Supervised(2.0),
    "k2": K2(),
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
        TokenTargets(labels),
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
    whole = objective(student, TokenTargets(labels, teacher, teacher_logprob_N=teacher[range(N), labels])).sum()
    whole.backward()
    assert all(torch.allclose(*pair) for pair in zip(got, (whole.detach(), hidden.grad, weight.grad), strict=True))
    assert terms.tokens == N
    assert torch.allclose(terms.logprob, student[range(N), labels].sum())
    assert torch.allclose(terms.teacher_logprob, teacher[range(N), labels].sum())


def test_without_a_teacher_there_is_no_teacher_figure() -> None:
    hidden, weight, _, _, labels = made()
    assert chunked_loss(Supervised(), lambda states: states @ weight.T, hidden, TokenTargets(labels)).teacher_logprob is None


def test_logits_of_the_whole_never_exist() -> None:
    hidden, weight, _, _, labels = made()
    seen: list[int] = []

    def head(states: Tensor) -> Tensor:
        seen.append(len(states))
        return states @ weight.T

    chunked_loss(Supervised(), head, hidden, TokenTargets(labels), chunk_tokens=4).loss.backward()
    assert max(seen) == 4


PAYLOADS: dict[str, Callable[[Tensor, Tensor], TokenTargets]] = {
    "full": lambda labels, teacher: TokenTargets(labels, teacher),
    "top 3": lambda labels, teacher: TokenTargets(labels, None, teacher.topk(3).indices, teacher.topk(3).values),
    "top V": lambda labels, teacher: TokenTargets(labels, None, teacher.topk(V).indices, teacher.topk(V).values),
    "sampled": lambda labels, teacher: TokenTargets(labels, teacher_logprob_N=teacher[range(N), labels]),
}


@pytest.mark.parametrize("chunk", [1, 4, 11])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_every_payload_is_cut_with_its_tokens(payload: str, chunk: int) -> None:
    hidden, weight, taught, theirs, labels = made()
    targets = PAYLOADS[payload](labels, (taught @ theirs.T).log_softmax(-1).detach())
    objective: Objective = K2() if payload == "sampled" else Match(reverse_kl)
    terms = chunked_loss(objective, lambda states: states @ weight.T, hidden, targets, chunk_tokens=chunk)
    whole = objective((hidden @ weight.T).log_softmax(-1), targets).sum()
    assert torch.allclose(terms.loss, whole)
    assert all(
        torch.allclose(*pair) for pair in zip(*(grad(loss, (hidden, weight)) for loss in (terms.loss, whole)), strict=True)
    )


@pytest.mark.parametrize(
    ("tokens", "chunk", "least", "calls"), [(N, 4, None, 3), (N, 4, 2, 3), (N, 4, 5, 5), (0, 4, 2, 2), (0, 4, None, 1)]
)
def test_head_is_called_at_least_so_often_forward_and_backward(tokens: int, chunk: int, least: int | None, calls: int) -> None:
    """Ranks that share a head must call it equally often, however few tokens one of them holds."""
    hidden, weight, taught, theirs, labels = made()
    seen: list[int] = []

    def head(states: Tensor) -> Tensor:
        seen.append(len(states))
        return states @ weight.T

    part, options = slice(tokens), {"teacher_head": lambda states: states @ theirs.T, "teacher_hidden_NE": taught[:tokens]}
    cut = chunked_loss(
        Match(reverse_kl), head, hidden[part], TokenTargets(labels[part]), **options, chunk_tokens=chunk, chunks=least
    )
    assert len(seen) == calls
    assert sum(seen) == cut.tokens == tokens
    whole = chunked_loss(Match(reverse_kl), head, hidden[part], TokenTargets(labels[part]), **options)
    before = len(seen)
    gradient = grad(cut.loss, (hidden, weight))
    assert len(seen) - before == (calls if calls > 1 else 0)
    assert torch.allclose(cut.loss, whole.loss) and torch.allclose(cut.teacher_logprob, whole.teacher_logprob)
    assert all(torch.allclose(*pair) for pair in zip(gradient, grad(whole.loss, (hidden, weight)), strict=True))


@pytest.mark.parametrize("chunks", [None, 3])
@pytest.mark.parametrize("objective", [Match(forward_kl), K2(), Supervised()], ids=["match", "k2", "supervised"])
def test_no_tokens_give_a_loss_of_zero_that_touches_the_head(objective: Objective, chunks: int | None) -> None:
    hidden, weight, _, _, labels = made()
    terms = chunked_loss(objective, lambda states: states @ weight.T, hidden[:0], TokenTargets(labels[:0]), chunks=chunks)
    gradients = grad(terms.loss, (hidden, weight))
    assert (terms.loss.item(), terms.tokens, terms.logprob.item(), terms.teacher_logprob.item()) == (0, 0, 0, 0)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
