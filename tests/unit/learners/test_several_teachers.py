"""A learner on rows of several teachers, in several payloads, and on mixtures: loss and gradient are those of the formulas."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.data.batching import collate, pack
from minidist.learners.learner import LocalLearner
from minidist.learners.teacher import SeveralTeachers
from minidist.losses import forward_kl, reverse_kl
from minidist.losses.chunked import LazyLogits, LinearHead, MixedLogits
from minidist.losses.support import top_k_and_tail
from minidist.types import MAIN, Batch, MixedScores, Payload, Row, Scores, Stream, TeacherScores, members_of
from tests.support.config import make_objective
from tests.support.learners import head_of_teacher, local_learner
from tests.support.tiny import hidden_scores, random_rollouts, row_logits, tiny_model

NAMES = ("maths", "code", "prose")
OWNERS = ("maths", "code", "prose", "code", "maths", "prose", "maths")
ROLLOUTS = [
    replace(each, prompt=replace(each.prompt, teacher=name))
    for each, name in zip(random_rollouts([(3, 4), (1, 6), (5, 1), (2, 2), (5, 8), (4, 3), (2, 5)]), OWNERS, strict=True)
]
TEACHERS = {name: tiny_model(seed=seed) for seed, name in enumerate(("maths", "code"), 1)}
HEADS = {name: head_of_teacher(model) for name, model in TEACHERS.items()}
K = 4
CUTS = [("packed", 1000, 1000), ("packed", 16, 3), ("buckets", 1000, 3), ("buckets", 16, 1000)]
KLS = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


def scores_of(name: str, payload: str = "hidden") -> list[TeacherScores]:
    """A teacher's scores of all rollouts: hidden states with the name of its head, or its likeliest tokens."""
    found = [replace(each, head=name) for each in hidden_scores(TEACHERS[name], ROLLOUTS)]
    if payload == "hidden":
        return found
    return [listed(name, each, rollout.tokens) for each, rollout in zip(found, ROLLOUTS, strict=True)]


def listed(name: str, scores: TeacherScores, labels: np.ndarray) -> TeacherScores:
    table = torch.log_softmax(HEADS[name](torch.tensor(scores.hidden)), -1)
    top, own = table.topk(K, -1), table.gather(-1, torch.tensor(labels[:, None].astype(np.int64)))[:, 0]
    return TeacherScores(Payload.TOP_K, own.numpy(), top.indices.numpy().astype(np.int32), top.values.numpy())


def routed_scores() -> list[Scores]:
    """Of rows of maths and code hidden states with heads of their own, of prose the likeliest tokens of a third teacher."""
    by_name = {
        "maths": scores_of("maths"),
        "code": scores_of("code"),
        "prose": scores_of("code", "top_k"),
    }
    return [by_name[name][index] for index, name in enumerate(OWNERS)]


def mixed_scores(maths: float) -> list[Scores]:
    pairs = zip(scores_of("maths"), scores_of("code"), strict=True)
    return [MixedScores(pair, (maths, 1 - maths)) for pair in pairs]


def learner(
    objective: str, layout: str = "packed", budget: int = 1000, chunk: int = 1000, *, by_row: bool = True
) -> LocalLearner:
    """A student that takes one step of plain gradient descent at rate 1, so that its change is the gradient."""
    optimizer = OptimizerConfig(type="sgd", lr=1.0, grad_clip=None, schedule="constant", warmup_steps=0)
    config = LearnerConfig(optimizer=optimizer, layout=layout, micro_batch_tokens=budget, chunk_tokens=chunk)  # type: ignore[arg-type]
    teacher = SeveralTeachers(HEADS, NAMES if by_row else ())
    return local_learner(tiny_model(seed=5), config, {MAIN: make_objective(objective)}, teacher=teacher)


def step(made: LocalLearner, *streams: Stream) -> tuple[dict[str, float], Tensor]:
    """The metrics of an update, and the gradient."""
    before = torch.cat([each.detach().flatten().clone() for each in made._pass.model.parameters()])
    metrics = asyncio.run(made.update(Batch(0, (streams,)))).metrics
    after = torch.cat([each.detach().flatten() for each in made._pass.model.parameters()])
    asyncio.run(made.close())
    return metrics, before - after


def teacher_table(row: Row) -> Tensor:
    """The teacher's log-probabilities [L, V], of a mixture too."""
    members = members_of(row.scores)
    weights = row.scores.weights if isinstance(row.scores, MixedScores) else (1.0,)
    tables = [torch.softmax(HEADS[each.head](torch.tensor(each.hidden)), -1) for each in members]
    return sum(weight * table for weight, table in zip(weights, tables, strict=True)).log()  # type: ignore[union-attr]


def by_formula(stream: Stream, divergence: Callable[[Tensor, Tensor], Tensor]) -> tuple[list[float], Tensor]:
    """The loss of each row, summed over its tokens, and the gradient of the mean over all tokens, row by row."""
    student, rows = tiny_model(seed=5), []
    for row in stream.rows:
        student_NV = torch.log_softmax(row_logits(student, row), -1)
        scores = row.scores
        if isinstance(scores, TeacherScores) and scores.payload == "top_k":
            pair = top_k_and_tail(student_NV, torch.tensor(scores.top_ids).long(), torch.tensor(scores.top_logprobs))
            rows.append(divergence(*pair).sum())
        else:
            rows.append(divergence(student_NV, teacher_table(row)).sum())
    (torch.stack(rows).sum() / stream.loss_tokens).backward()
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in student.parameters()]
    return [float(each.detach()) for each in rows], torch.cat([each.flatten() for each in gradients])


@pytest.mark.parametrize("objective", KLS)
@pytest.mark.parametrize(("layout", "budget", "chunk"), CUTS)
def test_rows_of_several_teachers_and_payloads_give_the_gradient_of_the_formula(
    objective: str, layout: str, budget: int, chunk: int
) -> None:
    stream = collate(MAIN, ROLLOUTS, routed_scores())
    rows, expected = by_formula(stream, KLS[objective])
    metrics, found = step(learner(objective, layout, budget, chunk), stream)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)
    assert metrics["loss/nats_per_token"] == pytest.approx(sum(rows) / stream.loss_tokens, rel=1e-5)
    for name in NAMES:
        own = [index for index, owner in enumerate(OWNERS) if owner == name]
        tokens = sum(len(ROLLOUTS[index].tokens) for index in own)
        expected_loss = sum(rows[index] for index in own) / tokens
        assert metrics[f"teacher/{name}/loss_nats_per_token"] == pytest.approx(expected_loss, rel=1e-5)


def test_a_batch_of_several_teachers_is_the_sum_of_a_batch_for_each() -> None:
    scores = routed_scores()
    whole = collate(MAIN, ROLLOUTS, scores)
    alone = []
    for name in NAMES:
        own = [index for index, owner in enumerate(OWNERS) if owner == name]
        part = collate(MAIN, [ROLLOUTS[index] for index in own], [scores[index] for index in own])
        alone.append(replace(part, weight=part.loss_tokens / whole.loss_tokens))
    parts = [step(learner("forward_kl"), stream)[1] for stream in alone]
    torch.testing.assert_close(step(learner("forward_kl"), whole)[1], torch.stack(parts).sum(0), atol=2e-6, rtol=1e-4)


def test_heads_of_one_name_are_one_teacher_bit_for_bit() -> None:
    """Rows of two teachers that share a head are laid out and computed as those of one."""
    shared: list[Scores] = list(scores_of("maths"))
    one = [replace(each, prompt=replace(each.prompt, teacher="maths")) for each in ROLLOUTS]
    found = [step(learner("reverse_kl", "packed", 16, 3), collate(MAIN, each, shared))[1] for each in (ROLLOUTS, one)]
    assert torch.equal(*found)


@pytest.mark.parametrize("objective", KLS)
@pytest.mark.parametrize("maths", [0.7, 0.5, 0.01])
def test_a_mixture_is_the_mean_of_the_distributions(objective: str, maths: float) -> None:
    stream = collate(MAIN, ROLLOUTS, mixed_scores(maths))
    rows, expected = by_formula(stream, KLS[objective])
    metrics, found = step(learner(objective, "packed", 16, 3, by_row=False), stream)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)
    assert metrics["loss/nats_per_token"] == pytest.approx(sum(rows) / stream.loss_tokens, rel=1e-5)
    assert not any(name.startswith("teacher/") for name in metrics), "all teachers score each row"


def test_a_forward_kl_to_a_mixture_has_the_gradient_of_the_weighted_sum() -> None:
    """And a reverse KL has not, so the choice between the two is one."""
    weights = {"maths": 0.7, "code": 0.3}
    for objective, equal in (("forward_kl", True), ("reverse_kl", False)):
        mixture = step(learner(objective, by_row=False), collate(MAIN, ROLLOUTS, mixed_scores(0.7)))[1]
        streams = [collate(MAIN, ROLLOUTS, scores_of(name), weight=weight) for name, weight in weights.items()]
        summed = step(learner(objective, by_row=False), *streams)[1]
        assert torch.allclose(mixture, summed, atol=2e-6, rtol=1e-4) == equal


def test_a_toy_mixture_is_the_closed_form() -> None:
    """Two teachers over three tokens: 0.7 (1/2, 1/4, 1/4) + 0.3 (1/10, 1/10, 4/5) = (0.38, 0.205, 0.415)."""
    tables = [torch.tensor([row]).log() for row in ([0.5, 0.25, 0.25], [0.1, 0.1, 0.8])]
    members = [LazyLogits(LinearHead(torch.eye(3)), table) for table in tables]
    mixed = MixedLogits(members, (0.7, 0.3)).at(slice(0, 1))
    torch.testing.assert_close(mixed.exp(), torch.tensor([[0.38, 0.205, 0.415]]))
    student = torch.tensor([[0.2, 0.3, 0.5]])
    by_hand = 0.38 * np.log(0.38 / 0.2) + 0.205 * np.log(0.205 / 0.3) + 0.415 * np.log(0.415 / 0.5)
    assert float(forward_kl(student.log(), mixed)) == pytest.approx(by_hand, rel=1e-5)
    assert MixedLogits(members[:1], (1.0,)).at(slice(0, 1)) is not None
    assert torch.equal(MixedLogits(members[:1], (1.0,)).at(slice(0, 1)), members[0].at(slice(0, 1)))


def test_divergences_are_measured_where_the_whole_distribution_is_known() -> None:
    stream = collate(MAIN, ROLLOUTS, routed_scores())
    made = learner("forward_kl", "buckets", 16, 3)
    measures = asyncio.run(made.measure(stream))
    asyncio.run(made.close())
    assert measures.teacher_logprob is not None and np.isfinite(measures.teacher_logprob).all()
    assert measures.reverse_kl is not None
    unknown = np.isin(measures.row, [index for index, owner in enumerate(OWNERS) if owner == "prose"])
    assert np.array_equal(np.isnan(measures.reverse_kl), unknown)


def test_rows_of_one_kind_follow_one_another_and_keep_their_tokens() -> None:
    (micro,) = pack(collate(MAIN, ROLLOUTS, routed_scores()).rows, budget=1000, padded=False)
    assert [OWNERS[row] for row in micro.rows] == ["maths"] * 3 + ["code"] * 2 + ["prose"] * 2
    assert micro.teachers == tuple(OWNERS[row] for row in micro.rows)
    assert [each.tokens for each in micro.scores] == [17, 8, 4]
    assert micro.labels.tolist() == np.concatenate([ROLLOUTS[row].tokens for row in micro.rows]).tolist()
