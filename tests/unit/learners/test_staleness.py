"""Text of an earlier student in the learner and in a credit: each token's weight, in every layout, by the plain formulas."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.models import StudentConfig
from minidist.data.batching import collate, unlabelled
from minidist.learners.learner import LocalLearner
from minidist.losses.objectives import K2, make_objective
from minidist.losses.ratios import Corrected
from minidist.methods import make_credit
from minidist.roles.make import RoleContext, make_learner
from minidist.types import Batch, Rollout, Stream, Writer
from tests.support.collecting import distill_config
from tests.support.config import objective_config
from tests.support.learners import head_of_teacher, local_learner
from tests.support.tiny import hidden_scores, random_rollouts, row_logits, tiny_model, tiny_renderer

LENGTHS = [(3, 4), (1, 9), (6, 1), (2, 2), (5, 8), (4, 3)]
RATE, BOUND = 0.1, 1.5
CUTS = [("packed", 1000, 1000), ("packed", 16, 3), ("buckets", 30, 5)]


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return tiny_model(seed=1)


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    """What another student wrote; of one answer the teacher chose tokens, one is of a data set, one is replayed."""
    before, made = tiny_model(seed=5), []
    for rollout in random_rollouts(LENGTHS):
        row = collate("x", [rollout]).rows[0]
        logprobs = torch.log_softmax(row_logits(before, row), -1)[range(len(row.labels)), row.labels].detach().numpy()
        made.append(replace(rollout, logprobs=logprobs))
    coins = np.arange(9) % 3 == 0
    made[1] = replace(made[1], coins=coins, logprobs=np.where(coins, np.float32("nan"), made[1].logprobs))
    made[3] = replace(made[3], writer=Writer.DATASET)
    made[5] = replace(made[5], logprobs=None)
    return made


def learner_of(made: list[LocalLearner], teacher: PreTrainedModel, objective: Any, **fields: Any) -> LocalLearner:
    config = LearnerConfig(optimizer=OptimizerConfig(type="sgd", lr=RATE, grad_clip=None), **fields)
    made.append(local_learner(tiny_model(), config, {"main": objective}, teacher=head_of_teacher(teacher)))
    return made[-1]


def main(teacher: PreTrainedModel, rollouts: list[Rollout], *, stale: bool = True) -> Stream:
    return collate("main", rollouts, hidden_scores(teacher, rollouts), stale=stale)


def ratio_of(model: PreTrainedModel, stream: Stream) -> list[Tensor]:
    """Of each row's tokens, untruncated."""
    found = []
    for row in stream.rows:
        now = torch.log_softmax(row_logits(model, row), -1)[range(len(row.labels)), row.labels].detach()
        found.append((now - torch.tensor(row.written_logprob)).exp().nan_to_num(1.0))
    return found


def test_rows_keep_the_log_probabilities_of_what_the_student_chose(teacher: PreTrainedModel, rollouts: list[Rollout]) -> None:
    rows = main(teacher, rollouts).rows
    for index in (0, 2, 4):
        assert np.array_equal(rows[index].written_logprob, rollouts[index].logprobs)  # type: ignore[arg-type]
    assert np.array_equal(np.isnan(rows[1].written_logprob), rollouts[1].coins)  # type: ignore[arg-type]
    assert np.isnan(rows[3].written_logprob).all() and np.isnan(rows[5].written_logprob).all()  # type: ignore[arg-type]
    assert all(len(row.written_logprob) == len(row.labels) for row in rows)  # type: ignore[arg-type]
    assert len(unlabelled(rows[0]).written_logprob) == 0  # type: ignore[arg-type]
    assert all(row.written_logprob is None for row in main(teacher, rollouts, stale=False).rows)
    some = replace(rollouts[0], labelled=np.array([False, True, True, False]))
    assert np.array_equal(collate("x", [some], stale=True).rows[0].written_logprob, rollouts[0].logprobs[1:3])  # type: ignore[arg-type, index]


@pytest.mark.parametrize(("layout", "micro", "chunk"), CUTS)
def test_each_tokens_loss_has_its_own_weight(
    teacher: PreTrainedModel, rollouts: list[Rollout], learners: list[LocalLearner], layout: Any, micro: int, chunk: int
) -> None:
    cuts = {"layout": layout, "micro_batch_tokens": micro, "chunk_tokens": chunk}
    learner = learner_of(learners, teacher, Corrected(K2(), BOUND), **cuts)
    stream, model = main(teacher, rollouts), tiny_model()
    ratios = ratio_of(model, stream)
    losses = []
    for row, ratio in zip(stream.rows, ratios, strict=True):
        q, p = (torch.log_softmax(row_logits(each, row), -1) for each in (model, teacher))
        gap = (q - p.detach())[range(len(row.labels)), row.labels]
        losses.append(ratio.clamp(max=BOUND) * gap**2 / 2)
    torch.cat(losses).mean().backward()
    metrics = asyncio.run(learner.update(Batch(0, ((stream,),)))).metrics
    for (name, value), parameter in zip(learner._pass.model.named_parameters(), model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(value, parameter - RATE * parameter.grad, atol=2e-6, rtol=1e-4, msg=name)
    every = torch.cat(ratios)
    assert metrics["policy/ratio_max"] == pytest.approx(every.max().item(), rel=1e-4)
    assert metrics["policy/ratio_mean"] == pytest.approx(every.clamp(max=BOUND).mean().item(), rel=1e-4)
    assert metrics["policy/ratio_truncated_frac"] == pytest.approx((every > BOUND).float().mean().item())
    assert 0 < metrics["policy/ratio_truncated_frac"] < 1
    assert metrics["loss/nats_per_token"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def test_text_of_the_current_student_is_not_weighted(
    teacher: PreTrainedModel, rollouts: list[Rollout], learners: list[LocalLearner]
) -> None:
    own = []
    for rollout in rollouts:
        row = collate("x", [rollout]).rows[0]
        now = torch.log_softmax(row_logits(tiny_model(), row), -1)[range(len(row.labels)), row.labels].detach().numpy()
        own.append(replace(rollout, logprobs=now, writer=Writer.STUDENT, coins=None))
    corrected = learner_of(learners, teacher, Corrected(K2(), BOUND))
    plain = learner_of(learners, teacher, K2())
    metrics = asyncio.run(corrected.update(Batch(0, ((main(teacher, own),),)))).metrics
    asyncio.run(plain.update(Batch(0, ((main(teacher, own, stale=False),),))))
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-5) and metrics["policy/ratio_truncated_frac"] == 0
    for left, right in zip(corrected._pass.model.parameters(), plain._pass.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("importance", ["one_step", "none"])
def test_a_credit_holds_the_ratios_of_its_tokens(
    teacher: PreTrainedModel, rollouts: list[Rollout], learners: list[LocalLearner], importance: str
) -> None:
    mixed = [replace(rollout, writer=Writer.STUDENT) for rollout in rollouts if rollout.logprobs is not None]
    kind = {"objective": {"type": "minillm", "importance": importance}, "rollout": {"teacher_mix": 0.2}}
    fresh, stale = (distill_config(loop={"max_staleness": most, "ratio_max": BOUND}, **kind) for most in (0, 1))
    learner = learner_of(learners, teacher, make_objective(stale.objective))
    stream = main(teacher, mixed)
    columns = []
    for config in (fresh, stale):
        credit = make_credit(config, learner)
        assert credit is not None
        columns.append(asyncio.run(credit.credit(stream)))
    (plain, _, before), (weighted, _, figures) = columns
    ratios = ratio_of(tiny_model(), stream)
    for old, new, ratio in zip(plain.rows, weighted.rows, ratios, strict=True):
        assert old.credit is not None and new.credit is not None
        assert np.allclose(new.credit.weight, old.credit.weight * ratio.clamp(max=BOUND).numpy(), rtol=1e-4)
        for name in ("old_logprob", "advantage", "reach"):
            assert np.array_equal(getattr(new.credit, name), getattr(old.credit, name))
    every = torch.cat(ratios)
    assert figures["policy/ratio_max"] == pytest.approx(every.max().item(), rel=1e-4)
    assert figures["policy/ratio_truncated_frac"] == pytest.approx((every > BOUND).float().mean().item())
    assert not [name for name in before if "ratio" in name]


@pytest.mark.parametrize(
    ("kind", "bound", "corrected"), [("reverse_kl", 2.0, True), ("reverse_kl", None, False), ("minillm", 2.0, False)]
)
def test_a_learner_corrects_its_main_stream_unless_a_credit_does(
    tmp_path: Path, learners: list[Any], kind: str, bound: float | None, corrected: bool
) -> None:
    tiny_model().save_pretrained(tmp_path)
    context = RoleContext(tiny_renderer(), ratio_max=bound)
    sections = {"main": objective_config(kind), "beside": objective_config("forward_kl")}
    made: Any = make_learner(
        context, StudentConfig(model=str(tmp_path)), LearnerConfig(backend="single"), sections, teacher=None
    )
    learners.append(made)
    assert [isinstance(made._objectives[name], Corrected) for name in sections] == [corrected, False]
