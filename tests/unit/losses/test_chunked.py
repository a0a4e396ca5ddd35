"""Chunk by chunk equals the whole, in value and gradient."""

import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from minidist.losses import akl, chunked_loss, forward_kl, jsd, reverse_kl
from minidist.losses.chunked import LazyLogits, LinearHead, nucleus_logprob
from minidist.losses.objectives import K2, Match, Supervised
from minidist.losses.targets import Objective, TokenCredit, TokenTargets
from tests.support.config import make_objective

N, D, E, V = 11, 6, 5, 9
OBJECTIVES = {
    "forward": Match(forward_kl),
    "reverse": Match(reverse_kl),
    "supervised": Supervised(),
    "forward, warm": Match(forward_kl, 2.0),
    "reverse, cold": Match(reverse_kl, 0.5),
    "supervised, warm": Supervised(2.0),
    "k2": K2(),
    "jsd, union": Match(partial(jsd, beta=0.5), 1.0, "union", 2),
    "akl": Match(partial(akl, mu=0.5, head_rule="released")),
    "minillm": make_objective("minillm", long_term=False),
}


def made() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student hidden states and head, teacher hidden states and head, labels."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher_hidden, teacher_weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((N, D), (V, D), (N, E), (V, E))
    )
    return hidden, weight, teacher_hidden, teacher_weight, torch.randint(0, V, (N,), generator=generator)


def credit(labels: Tensor) -> TokenCredit:
    ones = torch.ones(len(labels), dtype=torch.float64)
    return TokenCredit(ones, ones, ones, torch.linspace(0.5, 2, len(labels), dtype=torch.float64))


@pytest.mark.parametrize("way", ["at once", "in blocks", "again"])
@pytest.mark.parametrize("chunk", [1, 4, 5, 10, 11, 100])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunks_equal_the_whole(name: str, chunk: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "in blocks":
        monkeypatch.setattr("minidist.losses.chunked._BLOCK", 3 * V)
    objective: Objective = OBJECTIVES[name]
    hidden, weight, teacher_hidden, teacher_weight, labels = made()
    head = LinearHead(weight)
    terms = chunked_loss(
        objective,
        LazyLogits((lambda states: head(states)) if way == "again" else head, hidden),
        TokenTargets(labels, credit=credit(labels)),
        teacher=LazyLogits(lambda states: states @ teacher_weight.T, teacher_hidden),
        chunk_tokens=chunk,
    )
    (3 * terms.loss).backward()
    got = 3 * terms.loss.detach(), hidden.grad, weight.grad

    assert teacher_hidden.grad is None and teacher_weight.grad is None, "the teacher is frozen"
    assert not terms.logprob.requires_grad and not terms.teacher_logprob.requires_grad
    hidden.grad = weight.grad = None
    student = (hidden @ weight.T / objective.temperature).log_softmax(-1)
    teacher = (teacher_hidden @ teacher_weight.T / objective.temperature).log_softmax(-1).detach()
    targets = TokenTargets(labels, teacher, teacher_logprob_N=teacher[range(N), labels], credit=credit(labels))
    whole = 3 * objective(student, targets).sum()
    whole.backward()
    assert all(torch.allclose(*pair) for pair in zip(got, (whole.detach(), hidden.grad, weight.grad), strict=True))
    assert terms.tokens == N
    assert torch.allclose(terms.logprob, student[range(N), labels].sum())
    assert torch.allclose(terms.teacher_logprob, teacher[range(N), labels].sum())


def test_without_a_teacher_its_log_probability_is_none() -> None:
    hidden, weight, _, _, labels = made()
    student = LazyLogits(lambda states: states @ weight.T, hidden)
    assert chunked_loss(Supervised(), student, TokenTargets(labels)).teacher_logprob.isnan()


def test_logits_of_the_whole_never_exist() -> None:
    hidden, weight, _, _, labels = made()
    seen: list[int] = []

    def head(states: Tensor) -> Tensor:
        seen.append(len(states))
        return states @ weight.T

    chunked_loss(Supervised(), LazyLogits(head, hidden), TokenTargets(labels), chunk_tokens=4).loss.backward()
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
    hidden, weight, teacher_hidden, teacher_weight, labels = made()
    targets = PAYLOADS[payload](labels, (teacher_hidden @ teacher_weight.T).log_softmax(-1).detach())
    objective: Objective = K2() if payload == "sampled" else Match(reverse_kl)
    terms = chunked_loss(objective, LazyLogits(lambda states: states @ weight.T, hidden), targets, chunk_tokens=chunk)
    whole = objective((hidden @ weight.T).log_softmax(-1), targets).sum()
    assert torch.allclose(terms.loss, whole)
    assert all(
        torch.allclose(*pair) for pair in zip(*(grad(loss, (hidden, weight)) for loss in (terms.loss, whole)), strict=True)
    )


@pytest.mark.parametrize(("tokens", "chunk", "calls"), [(N, 4, 3), (N, 20, 1), (0, 4, 1)])
def test_a_head_that_is_no_matrix_is_called_for_each_chunk_forward_and_backward(tokens: int, chunk: int, calls: int) -> None:
    hidden, weight, teacher_hidden, teacher_weight, labels = made()
    seen: list[int] = []

    def head(states: Tensor) -> Tensor:
        seen.append(len(states))
        return states @ weight.T

    student, targets = LazyLogits(head, hidden[:tokens]), TokenTargets(labels[:tokens])
    teacher = LazyLogits(lambda states: states @ teacher_weight.T, teacher_hidden[:tokens])
    cut = chunked_loss(Match(reverse_kl), student, targets, teacher=teacher, chunk_tokens=chunk)
    assert len(seen) == calls
    assert sum(seen) == cut.tokens == tokens
    whole = chunked_loss(Match(reverse_kl), student, targets, teacher=teacher)
    before = len(seen)
    gradient = grad(cut.loss, (hidden, weight))
    assert len(seen) - before == (calls if calls > 1 else 0)
    assert torch.allclose(cut.loss, whole.loss) and torch.allclose(cut.teacher_logprob, whole.teacher_logprob)
    assert all(torch.allclose(*pair) for pair in zip(gradient, grad(whole.loss, (hidden, weight)), strict=True))


@pytest.mark.parametrize("objective", [Match(forward_kl), K2(), Supervised()], ids=["match", "k2", "supervised"])
def test_no_tokens_give_a_loss_of_zero_that_touches_the_head(objective: Objective) -> None:
    hidden, weight, _, _, labels = made()
    student = LazyLogits(lambda states: states @ weight.T, hidden[:0])
    terms = chunked_loss(objective, student, TokenTargets(labels[:0]))
    gradients = grad(terms.loss, (hidden, weight))
    assert (terms.loss.item(), terms.tokens, terms.logprob.item(), terms.teacher_logprob.item()) == (0, 0, 0, 0)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


class Grouped(Objective):
    """Each token's log-probability times the sum of its group's: only right when groups are whole."""

    temperature = 1.0
    group_tokens = 4

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        assert targets.group_N is not None
        logprob_N = student_NV.gather(-1, targets.labels_N[:, None])[:, 0]
        same_group_NN = (targets.group_N[:, None] == targets.group_N).to(logprob_N)
        return logprob_N * (same_group_NN @ logprob_N)


@pytest.mark.parametrize("chunk", [1, 3, 5, 6, 11])
def test_groups_are_never_split(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minidist.losses.chunked._BLOCK", V)
    hidden, weight, _, _, labels = made()
    targets = TokenTargets(labels, group_N=torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 7, 7, 8]))
    terms = chunked_loss(Grouped(), LazyLogits(LinearHead(weight), hidden), targets, chunk_tokens=chunk)
    whole = Grouped()((hidden @ weight.T).log_softmax(-1), targets).sum()
    assert torch.allclose(terms.loss, whole)
    assert all(
        torch.allclose(*pair) for pair in zip(*(grad(loss, (hidden, weight)) for loss in (terms.loss, whole)), strict=True)
    )
    calls: list[int] = []

    def head(states: Tensor) -> Tensor:
        calls.append(len(states))
        return states @ weight.T

    chunked_loss(Grouped(), LazyLogits(head, hidden), targets, chunk_tokens=chunk)
    assert sum(calls) == N
    assert max(calls) <= max(chunk, 4), "no chunk is larger than asked for, unless one group is"


@pytest.mark.parametrize("frozen", [None, "weight", "hidden"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_part_of_a_linear_head_enters_its_gradient(
    dtype: torch.dtype, frozen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bias, scale, soft cap, padded vocabulary, hidden states of another precision, what is frozen, and blocks."""
    monkeypatch.setattr("minidist.losses.chunked._BLOCK", 2 * V)
    hidden, weight, teacher_hidden, teacher_weight, labels = made()
    bias = torch.linspace(-1, 1, V, dtype=torch.float64)
    weight, bias, hidden = (each.detach().to(dtype).requires_grad_() for each in (weight, bias, hidden))
    (weight if frozen == "weight" else hidden).requires_grad_(frozen is None)
    head = LinearHead(weight, bias, 0.7, 3.0, V - 2)
    targets = TokenTargets(labels % (V - 2), (teacher_hidden @ teacher_weight.T)[:, : V - 2].log_softmax(-1).detach().to(dtype))
    learned = [each for each in (hidden, weight, bias) if each.requires_grad]
    terms = chunked_loss(Match(reverse_kl), LazyLogits(head, hidden), targets, chunk_tokens=4)
    logits = 3 * torch.tanh(0.7 * (hidden @ weight.T + bias).to(torch.promote_types(dtype, torch.float32)) / 3)
    whole = Match(reverse_kl)(logits[:, : V - 2].log_softmax(-1), targets).sum()
    room = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    assert torch.allclose(terms.loss.double(), whole.double(), rtol=room, atol=room)
    for got, wanted in zip(grad(terms.loss, learned), grad(whole, learned), strict=True):
        assert got.dtype == dtype
        assert torch.allclose(got.double(), wanted.double(), rtol=room, atol=room * float(wanted.abs().max()))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_inputs_are_computed_in_float32(name: str) -> None:
    """From bfloat16 hidden states and heads, what follows the logits is float32: only the gradients are rounded at last."""
    hidden, weight, teacher_hidden, teacher_weight, labels = made()
    halves, teacher_halves = (
        [each.detach().bfloat16() for each in pair] for pair in ((hidden, weight), (teacher_hidden, teacher_weight))
    )
    with torch.no_grad():  # the same logits, which bfloat16 products are rounded to
        tables = [(left @ right.T).double() for left, right in (halves, teacher_halves)]
    earned = TokenCredit(*(getattr(credit(labels), field.name).float() for field in fields(TokenCredit)))
    targets, objective = TokenTargets(labels, credit=earned), OBJECTIVES[name]
    states, head = (each.clone().requires_grad_() for each in halves)
    teacher = LazyLogits(LinearHead(teacher_halves[1]), teacher_halves[0])
    terms = chunked_loss(objective, LazyLogits(LinearHead(head), states), targets, teacher=teacher, chunk_tokens=4)
    assert terms.loss.dtype == torch.float32
    logits = tables[0].requires_grad_()
    teacher_logprobs = (tables[1] / objective.temperature).log_softmax(-1)
    whole = objective(
        (logits / objective.temperature).log_softmax(-1),
        TokenTargets(labels, teacher_logprobs, teacher_logprob_N=teacher_logprobs[range(N), labels], credit=credit(labels)),
    ).sum()
    assert terms.loss.item() == pytest.approx(whole.item(), rel=2e-5, abs=1e-5)
    gradient = grad(whole, logits)[0]
    for got, wanted in zip(
        grad(terms.loss, (states, head)), (gradient @ halves[1].double(), gradient.T @ halves[0].double()), strict=True
    ):
        assert got.dtype == torch.bfloat16
        assert torch.allclose(got.double(), wanted, rtol=0.02, atol=0.01 * float(wanted.abs().max()))


def test_nothing_is_computed_again_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, _, labels = made()
    calls: list[int] = []
    raw = LinearHead.raw
    monkeypatch.setattr(LinearHead, "raw", lambda self, states, *rest: (calls.append(len(states)), raw(self, states, *rest))[1])
    terms = chunked_loss(Supervised(), LazyLogits(LinearHead(weight), hidden), TokenTargets(labels), chunk_tokens=4)
    assert calls == [4, 4, 3]
    terms.loss.backward()
    assert calls == [4, 4, 3]


def test_gradients_of_two_micro_batches_add_up() -> None:
    hidden, weight, _, _, labels = made()
    for part in (slice(0, 4), slice(4, N)):
        student = LazyLogits(LinearHead(weight), hidden[part])
        chunked_loss(Supervised(), student, TokenTargets(labels[part]), chunk_tokens=3).loss.backward()
    wanted = grad(-(hidden @ weight.T).log_softmax(-1)[range(N), labels].sum(), (hidden, weight))
    assert torch.allclose(hidden.grad, wanted[0]) and torch.allclose(weight.grad, wanted[1])


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.95, 1.0])
def test_nucleus_log_probabilities_are_those_of_a_naive_cut(top_p: float) -> None:
    """Sort, keep tokens until their mass reaches top_p, renormalise; a label outside counts as sampled."""
    table_NV = (3 * torch.randn(40, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).log_softmax(-1)
    labels_N = torch.arange(40) % 9
    found_N = nucleus_logprob(table_NV, labels_N, top_p)
    outside = 0
    for line, label, found in zip(table_NV.exp().tolist(), labels_N.tolist(), found_N.tolist(), strict=True):
        kept: list[int] = []
        for token in sorted(range(9), key=lambda each: -line[each]):
            if sum(line[each] for each in kept) < top_p:
                kept.append(token)
        outside += label not in kept
        total = sum(line[each] for each in {*kept, label})
        assert found == pytest.approx(math.log(line[label] / total))
    assert (outside > 0) == (top_p < 1)
