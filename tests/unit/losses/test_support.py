"""The teacher's top K and their tail: a distribution, the full one at K = V, and never a larger divergence."""

import doctest
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

import minidist.losses.support as module
from minidist.losses import (
    entropy_gated,
    forward_kl,
    jeffreys,
    jsd,
    on_support,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    top_k_and_tail,
    total_variation,
)
from minidist.losses.objectives import Match
from minidist.losses.support import TAIL_FLOOR, Support
from minidist.losses.targets import Divergence, TokenTargets

BOTH = pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
N, V = 200, 9


def tables(seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits of the student, log-probabilities of the teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, N, V, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher.log_softmax(-1)


def listed(teacher: Tensor, count: int) -> tuple[Tensor, Tensor]:
    top = teacher.topk(count, -1)
    return top.indices, top.values


@pytest.mark.parametrize("count", [1, 4, V - 1, V])
def test_both_tables_are_distributions_over_the_same_classes(count: int) -> None:
    student, teacher = tables()
    ids, values = listed(teacher, count)
    student_table, teacher_table = top_k_and_tail(student.log_softmax(-1), ids, values)
    assert student_table.shape == teacher_table.shape == (N, count + (count < V))
    for table, source in ((student_table, student.softmax(-1)), (teacher_table, teacher.exp())):
        assert torch.allclose(table.exp().sum(-1), torch.ones(N, dtype=torch.float64))
        assert torch.allclose(table.exp()[:, :count], source.gather(-1, ids))


@BOTH
def test_all_ids_listed_is_the_full_vocabulary(divergence: Divergence) -> None:
    student, teacher = tables()
    ids, values = listed(teacher, V)
    coarse, full = (
        Match(divergence)(student.log_softmax(-1), targets)
        for targets in (TokenTargets(ids[:, 0], None, ids, values), TokenTargets(ids[:, 0], teacher))
    )
    assert torch.allclose(coarse, full, atol=1e-12)
    assert torch.allclose(grad(coarse.sum(), student)[0], grad(full.sum(), student)[0], atol=1e-12)


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_fewer_classes_never_raise_a_divergence(divergence: Divergence, seed: int) -> None:
    student, teacher = tables(seed)
    values = [divergence(*top_k_and_tail(student.log_softmax(-1), *listed(teacher, count))) for count in range(1, V + 1)]
    for fewer, more in pairwise(values):
        assert (fewer <= more + 1e-9).all()
    assert (values[0] >= -1e-9).all()
    assert (values[2] < values[-1]).any(), "no K lost anything: the property was not tried"


@BOTH
def test_gradient_is_that_of_finite_differences(divergence: Divergence) -> None:
    student, teacher = tables()
    ids, values = listed(teacher, 3)
    assert torch.autograd.gradcheck(
        lambda logits: divergence(*top_k_and_tail(logits.log_softmax(-1), ids[:4], values[:4])),
        student[:4].detach().requires_grad_(),
    )


def test_renormalised_lists_are_no_bound() -> None:
    """What top K and tail give is at most the full divergence; over the listed classes scaled up it can be above."""
    teacher = torch.tensor([[0.4, 0.1, 0.5 - 1e-3, 1e-3]], dtype=torch.float64).log()
    student = torch.tensor([[0.1, 0.4, 0.5 - 1e-3, 1e-3]], dtype=torch.float64).log()
    ids = torch.tensor([[0, 1]])
    full = forward_kl(student, teacher)
    assert (forward_kl(*top_k_and_tail(student, ids, teacher[:, :2])) <= full + 1e-12).all()
    scaled = forward_kl(*(table[:, :2].log_softmax(-1) for table in (student, teacher)))
    assert (scaled > 1.5 * full).all()


def test_an_entropy_gate_opens_less_often_over_a_list() -> None:
    _, teacher = tables()
    ids, values = listed(teacher, 2)
    _, coarse = top_k_and_tail(teacher, ids, values)
    entropies = [-(table.exp() * table).sum(-1) for table in (coarse, teacher)]
    assert (entropies[0] <= entropies[1] + 1e-9).all() and (entropies[0] < entropies[1] - 0.1).any()
    other = teacher.flip(-1)
    opened = [
        entropy_gated(*pair, threshold=0.8) > reverse_kl(*pair) + 1e-9
        for pair in (top_k_and_tail(other, ids, values), (other, teacher))
    ]
    assert not (opened[0] & ~opened[1]).any() and 0 < opened[0].sum() < opened[1].sum()


@pytest.mark.parametrize("support", ["teacher", "union"])
def test_a_student_without_mass_in_the_tail_stays_finite_on_every_support(support: Support) -> None:
    logits = torch.tensor([[0.0, -math.inf, -math.inf], [1.0, 0.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log()
    value = forward_kl(*on_support(logits.log_softmax(-1), teacher, support, 1))
    assert value.isfinite().all() and grad(value.sum(), logits)[0].isfinite().all()
    value = forward_kl(*top_k_and_tail(logits.log_softmax(-1), torch.tensor([[0], [0]]), teacher[:, :1]))
    assert value.isfinite().all() and grad(value.sum(), logits)[0].isfinite().all()


def test_student_mass_outside_the_list_costs() -> None:
    """Renormalised to what is listed, the two would agree, and the student could say anything else for nothing."""
    teacher = torch.tensor([[0.6, 0.3, 0.1, 0.0]], dtype=torch.float64).log()
    student = torch.tensor([[0.2, 0.1, 0.0, 0.7]], dtype=torch.float64).log()
    student_table, teacher_table = top_k_and_tail(student, torch.tensor([[0, 1]]), teacher[:, :2])
    assert forward_kl(student_table, teacher_table).item() == pytest.approx(0.9 * math.log(3) + 0.1 * math.log(0.1 / 0.7))
    assert reverse_kl(student_table, teacher_table).item() == pytest.approx(0.3 * math.log(1 / 3) + 0.7 * math.log(0.7 / 0.1))


@BOTH
@pytest.mark.parametrize("excess", [0.0, 1e-7, -1e-9, 1e-3], ids=["one", "rounded up", "rounded down", "wrong"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tail_of_no_mass_stays_finite(divergence: Divergence, excess: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 3.0, -300.0]], dtype=dtype, requires_grad=True)
    values = (torch.tensor([[0.75, 0.25]], dtype=dtype) * (1 + excess)).log()
    student_table, teacher_table = top_k_and_tail(logits.log_softmax(-1), torch.tensor([[0, 2]]), values)
    assert teacher_table[0, -1].item() == pytest.approx(math.log(TAIL_FLOOR), abs=0.2)
    value = divergence(student_table, teacher_table)
    assert torch.isfinite(value).all() and torch.isfinite(grad(value.sum(), logits)[0]).all()


@BOTH
def test_a_student_without_a_tail_stays_finite(divergence: Divergence) -> None:
    """1 - sum would be exactly zero here, and its logarithm would have no slope."""
    logits = torch.tensor([[40.0, 39.0, -60.0, -70.0]], requires_grad=True)
    student_table, teacher_table = top_k_and_tail(
        logits.log_softmax(-1), torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.4]]).log()
    )
    assert student_table[0, -1].item() == pytest.approx(-60 - 40 - math.log1p(math.exp(-1)), abs=1e-3)
    value = divergence(student_table, teacher_table)
    assert torch.isfinite(value).all() and torch.isfinite(grad(value.sum(), logits)[0]).all()


def test_the_tail_of_float32_scores_is_right_far_above_the_floor() -> None:
    teacher = torch.tensor([[0.9, 0.0999, 0.00009, 0.00001]], dtype=torch.float64).log()
    _, teacher_table = top_k_and_tail(teacher.float(), torch.tensor([[0, 1]]), teacher[:, :2].float())
    assert teacher_table[0, -1].item() == pytest.approx(math.log(1e-4), abs=2e-3)


def test_listed_tokens_are_matched_at_temperature_one_only() -> None:
    _, teacher = tables()
    ids, values = listed(teacher, 3)
    with pytest.raises(AssertionError, match="at temperature 1 only"):
        Match(forward_kl, 2.0)(teacher, TokenTargets(ids[:, 0], None, ids, values))


def test_docstring_examples() -> None:
    done = doctest.testmod(module)
    assert done.attempted >= 3
    assert done.failed == 0


F_DIVERGENCES: dict[str, Divergence] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jeffreys": jeffreys,
    "total variation": total_variation,
    "jsd": partial(jsd, beta=0.5),
    "skew forward": partial(skew_forward_kl, alpha=0.1),
    "skew reverse": partial(skew_reverse_kl, alpha=0.1),
}


@pytest.mark.parametrize("support", ["teacher", "student", "union"])
@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_a_support_never_raises_an_f_divergence(name: str, support: Support) -> None:
    divergence = F_DIVERGENCES[name]
    student, teacher = tables()
    own = student.log_softmax(-1)
    full = divergence(own, teacher)
    found = [divergence(*on_support(own, teacher, support, count)) for count in (1, 2, 4, V)]
    assert all((coarse <= full + 1e-9).all() for coarse in found)
    assert torch.allclose(found[-1], full), "at K = V it is the same"
    assert (found[0] < full - 1e-3).any(), "and below it with fewer"
    for coarse in found:
        assert grad(coarse.sum(), student, retain_graph=True)[0].isfinite().all()


@pytest.mark.parametrize("support", ["teacher", "student", "union"])
def test_a_support_lists_the_likeliest_tokens_of_its_models(support: Support) -> None:
    student, teacher = tables()
    own = student.detach().log_softmax(-1)
    student_table, teacher_table = on_support(own, teacher, support, 3)
    lists = {"teacher": [teacher], "student": [own], "union": [teacher, own]}[support]
    for row in range(20):
        tokens = sorted({int(token) for table in lists for token in table[row].topk(3).indices})
        for got, source in ((student_table, own), (teacher_table, teacher)):
            values = got[row].exp()
            kept = values[:-1][values[:-1] > 0]
            assert sorted(kept.tolist()) == pytest.approx(sorted(source[row, tokens].exp().tolist()))
            assert float(values[-1]) == pytest.approx(1 - float(source[row, tokens].exp().sum()), abs=1e-12)
    assert torch.allclose(student_table.exp().sum(-1), torch.ones(N, dtype=torch.float64))


def test_a_listed_support_of_a_payload_is_that_of_the_full_table() -> None:
    """The teacher's K likeliest out of more that its payload lists."""
    student, teacher = tables()
    own, (ids, values) = student.log_softmax(-1), listed(teacher, 6)
    objective = Match(partial(jsd, beta=0.5), 1.0, "teacher", 3)
    labels = ids[:, 0]
    assert torch.allclose(
        objective(own, TokenTargets(labels, None, ids, values)), objective(own, TokenTargets(labels, teacher))
    )


def test_a_list_longer_than_the_vocabulary_is_refused() -> None:
    student, teacher = tables()
    with pytest.raises(ValueError, match=r"top_k is 10, and the vocabulary has 9 tokens; lower top_k, or set support=full"):
        on_support(student.log_softmax(-1), teacher, "union", V + 1)
