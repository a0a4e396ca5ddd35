"""A collection through source, credit and learner, in flat micro-batches and chunks, against the reference loss."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.objectives import MiniLLMConfig
from minidist.data.sources import Example
from minidist.learners.learner import LocalLearner
from minidist.learners.ranks import LearnerRanks
from minidist.losses import minillm_loss
from minidist.types import Batch, Prompt, Rollout, Row, Sampling, Stream, TeacherScores
from tests.support.collecting import collect, distill_config
from tests.support.config import make_objective
from tests.support.learners import head_of_teacher, local_learner
from tests.support.tiny import VOCABULARY, hidden_scores, random_rollouts, row_logits, tiny_model

ROLLOUTS = random_rollouts([(3, 4), (1, 9), (6, 1), (2, 2), (5, 8), (4, 3)])
WIDTH = 12
RATE = 0.05
GOLD = [Example(np.arange(1 + n, dtype=np.int32) % VOCABULARY, 1) for n in range(3, 12)]

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "lmops": {"preset": "lmops", "minibatches": 2},
    "masked": {"whitening": "masked", "clip": 0.1, "inner_epochs": 2},
    "per decision": {"importance": "per_decision", "length_norm": False},
    "warm": {"temperature": 1.5, "minibatches": 3},
    "long alone": {"single_step": False, "credit": "own", "gamma": 0.9},
    "single alone": {"long_term": False},
}
CUTS = [("packed", 1000, 1000), ("packed", 16, 3), ("buckets", 30, 1000)]


class FixedEngine:
    """Answers every prompt with its rollout of ROLLOUTS."""

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        return [ROLLOUTS[prompt.row] for prompt in prompts]

    async def figures(self) -> dict[str, float]:
        return {}


class HiddenTeacher:
    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        return hidden_scores(self.model, rollouts)


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return tiny_model(seed=1)


def make_learner(made: list[LocalLearner], teacher: PreTrainedModel, settings: MiniLLMConfig, **fields: Any) -> LocalLearner:
    optimizer = OptimizerConfig(type="sgd", lr=RATE, grad_clip=None)
    objectives = {"main": make_objective(**settings.model_dump()), "gold": make_objective("kd", ratio=0.25)}
    config = LearnerConfig(backend="single", optimizer=optimizer, **fields)
    made.append(local_learner(tiny_model(), config, objectives, teacher=head_of_teacher(teacher)))
    return made[-1]


def collected(learner: Any, teacher: PreTrainedModel, options: dict[str, Any], *, mix: float, gold: float = 0.0) -> Batch:
    """The first collection of a run with seed 3."""
    heat = options.get("temperature", 1.0)
    rollout = {"prompts_per_step": len(ROLLOUTS), "max_new_tokens": WIDTH, "teacher_mix": mix, "temperature": heat}
    kd = {"data": {"path": "x", "text": "{{ x }}"}, "objective": {"type": "kd"}, "rows": 2, "weight": gold}
    objective, streams = {"type": "minillm", **options}, {"gold": kd} if gold else {}
    config = distill_config(run={"seed": 3}, objective=objective, rollout=rollout, streams=streams)
    prompts = [rollout.prompt for rollout in ROLLOUTS]
    return collect(config, prompts, FixedEngine(), HiddenTeacher(teacher), learner=learner, examples={"gold": GOLD})


def main_of(batch: Batch) -> Stream:
    """The main stream as it was collected, before it is cut into minibatches."""
    assert batch.main is not None
    return batch.main


def tables(model: PreTrainedModel, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, T, V], tokens and lengths of the rows, each run alone."""
    logits = torch.zeros(len(rows), WIDTH, VOCABULARY)
    tokens = torch.zeros(len(rows), WIDTH, dtype=torch.long)
    for number, row in enumerate(rows):
        logits[number, : len(row.labels)] = row_logits(model, row)
        tokens[number, : len(row.labels)] = torch.tensor(row.labels)
    return logits, tokens, torch.tensor([len(row.labels) for row in rows])


def reference(teacher: PreTrainedModel, batch: Batch, options: dict[str, Any], mix: float) -> dict[str, Tensor]:
    """The weights after the batch's steps: the reference loss of the whole collection, of which each step takes its rows."""
    model, rows = tiny_model(), main_of(batch).rows
    asked = {"whitening": MiniLLMConfig(**options).whitening} | options
    with torch.no_grad():
        taught, tokens, lengths = tables(teacher, rows)
        heat = options.get("temperature", 1.0)
        said = torch.log_softmax(tables(model, rows)[0] / heat, -1).gather(-1, tokens[..., None])[..., 0]
    for main, *beside in batch.steps:
        picked = [next(i for i, row in enumerate(rows) if row is own) for own in main.rows]
        losses = minillm_loss(tables(model, rows)[0], taught, tokens, lengths, old_logprobs_BT=said, teacher_mix=mix, **asked)
        loss = losses[picked].sum() / lengths[picked].sum()
        for stream in beside:
            loss = loss + stream.weight * kd(model, teacher, stream.rows)
        names, parameters = zip(*model.named_parameters(), strict=True)
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= RATE * slope
    return dict(zip(names, [parameter.detach() for parameter in parameters], strict=True))


def kd(model: PreTrainedModel, teacher: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """0.75 of the cross-entropy and 0.25 of KL(teacher || student), a mean over tokens."""
    values = []
    for row in rows:
        q, p = (torch.log_softmax(row_logits(each, row), -1) for each in (model, teacher))
        values.append(-0.75 * q[range(len(row.labels)), row.labels] + 0.25 * (p.exp() * (p - q)).sum(-1))
    return torch.cat(values).mean()


def assert_weights(model: PreTrainedModel, expected: dict[str, Tensor]) -> None:
    start = dict(tiny_model().named_parameters())
    assert max((expected[name] - start[name]).abs().max().item() for name in expected) > 2e-3
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name].detach(), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("layout", "micro", "chunk"), CUTS)
def test_a_collection_through_the_learner_equals_the_reference_loss(
    teacher: PreTrainedModel, learners: list[LocalLearner], variant: str, layout: Any, micro: int, chunk: int
) -> None:
    options = VARIANTS[variant]
    settings = MiniLLMConfig(**options)
    learner = make_learner(learners, teacher, settings, layout=layout, micro_batch_tokens=micro, chunk_tokens=chunk)
    batch = collected(learner, teacher, options, mix=0.2)
    assert len(batch.steps) == settings.updates
    expected = reference(teacher, batch, options, 0.2)
    update = asyncio.run(learner.update(batch))
    assert update.version == settings.updates
    assert_weights(learner._pass.model, expected)


def test_regularisers_are_in_every_inner_step(teacher: PreTrainedModel, learners: list[LocalLearner]) -> None:
    options = {"preset": "lmops", "minibatches": 2, "inner_epochs": 2}
    settings = MiniLLMConfig(**options)
    learner = make_learner(learners, teacher, settings)
    batch = collected(learner, teacher, options, mix=0.2, gold=0.7)
    assert [[len(stream.rows) for stream in streams] for streams in batch.steps] == [[3, 2]] * 4
    given = [row.tokens.tobytes() for streams in batch.steps for row in streams[1].rows]
    assert len(set(given)) == 8  # other text at every step
    expected = reference(teacher, batch, options, 0.2)
    asyncio.run(learner.update(batch))
    assert_weights(learner._pass.model, expected)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_each_minibatch(teacher: PreTrainedModel, learners: list[LocalLearner], ranks: int) -> None:
    options = {"preset": "lmops", "minibatches": 2}
    learner = make_learner(learners, teacher, MiniLLMConfig(**options))
    batch = collected(learner, teacher, options, mix=0.2, gold=0.7)
    asked: list[Batch] = []

    class Rank:
        async def update(self, share: Batch) -> None:
            asked.append(share)

    asyncio.run(LearnerRanks([Rank() for _ in range(ranks)]).update(batch))  # type: ignore[misc, list-item]
    for number, streams in enumerate(batch.steps):
        for place, stream in enumerate(streams):
            shares = [share.steps[number][place] for share in asked]
            assert {share.loss_tokens for share in shares} == {stream.loss_tokens}
            rows = [row for share in shares for row in share.rows if len(row.labels)]
            assert {id(row) for row in rows} == {id(row) for row in stream.rows}
            assert sum(len(row.labels) for row in rows) == stream.loss_tokens


def test_policy_metrics_are_those_of_the_collection(teacher: PreTrainedModel, learners: list[LocalLearner]) -> None:
    options = {"preset": "lmops"}
    learner = make_learner(learners, teacher, MiniLLMConfig(**options))
    batch = collected(learner, teacher, options, mix=0.2)
    rows = main_of(batch).rows
    with torch.no_grad():
        said, taught = (torch.log_softmax(tables(model, rows)[0], -1) for model in (tiny_model(), teacher))
    tokens, lengths = tables(teacher, rows)[1:]
    mask = torch.arange(WIDTH) < lengths[:, None]
    gap = (taught - said).gather(-1, tokens[..., None])[..., 0][mask].double()
    assert batch.metrics["policy/reward_mean_nats"] == pytest.approx(gap.mean().item(), rel=1e-4)
    assert batch.metrics["policy/disliked_frac"] == pytest.approx((gap.exp() < 1 / 6).double().mean().item())
    assert batch.metrics["policy/weight_max"] == pytest.approx((1 / (0.8 + 0.2 * gap.exp())).max().item(), rel=1e-4)
    assert batch.metrics["policy/weight_min"] == pytest.approx((1 / (0.8 + 0.2 * gap.exp())).min().item(), rel=1e-4)
    # At the first step the bound of 0.2 holds back what the teacher likes six times less, and rewards well.
    first = Batch(0, ((main_of(batch),),))
    credit = np.concatenate([row.credit.advantage for row in rows])  # type: ignore[union-attr]
    held = ((gap.exp() < 1 / 6) & (torch.tensor(credit) > 0)) | ((gap.exp() > 2.25) & (torch.tensor(credit) < 0))
    assert 0 < held.double().mean() < 1
    found = asyncio.run(learner.update(first)).metrics["policy/clip_frac"]
    assert found == pytest.approx(held.double().mean().item())


def test_own_samples_have_weights_of_one(teacher: PreTrainedModel, learners: list[LocalLearner]) -> None:
    batch = collected(make_learner(learners, teacher, MiniLLMConfig()), teacher, {}, mix=0.0)
    assert all((row.credit.weight == 1).all() and (row.credit.reach == 1).all() for row in main_of(batch).rows)  # type: ignore[union-attr]
    assert batch.measures is not None and len(batch.measures.student_logprob) == main_of(batch).loss_tokens
