"""Products of matrices in bfloat16 beside float32 weights: the loss and gradient they cost, and what keeps its precision."""

import asyncio

import pytest
import torch

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.data.batching import collate
from minidist.learners.learner import LocalLearner
from minidist.types import MAIN, Batch, Stream
from tests.support.config import make_objective
from tests.support.learners import head_of_teacher, local_learner
from tests.support.tiny import hidden_scores, random_rollouts, tiny_model


def stream() -> Stream:
    """Rollouts with the hidden states of a teacher."""
    rollouts = random_rollouts([(3, 6), (4, 12), (2, 9)])
    return collate(MAIN, rollouts, hidden_scores(tiny_model(seed=1), rollouts))


def learner(compute: str | None, lr: float = 1e-3, objective: str = "reverse_kl") -> LocalLearner:
    optimizer = OptimizerConfig(type="sgd", lr=lr, grad_clip=None)
    config = LearnerConfig(compute_dtype=compute, optimizer=optimizer)  # type: ignore[arg-type]
    head = head_of_teacher(tiny_model(seed=1))
    return local_learner(tiny_model(), config, {MAIN: make_objective(objective)}, teacher=head)


def updated(made: LocalLearner) -> dict[str, float]:
    return asyncio.run(made.update(Batch(0, ((stream(),),)))).metrics


@pytest.mark.parametrize("objective", ["reverse_kl", "forward_kl", "jsd"])
def test_loss_and_gradient_differ_by_the_rounding_of_bfloat16(objective: str) -> None:
    exact, mixed = learner(None, objective=objective), learner("bfloat16", objective=objective)
    before = {name: tensor.clone() for name, tensor in exact._pass.model.state_dict().items()}
    losses = [updated(each)["loss/nats_per_token"] for each in (exact, mixed)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)
    steps = [
        torch.cat([(tensor - before[name]).flatten() for name, tensor in each._pass.model.state_dict().items()])
        for each in (exact, mixed)
    ]
    assert torch.nn.functional.cosine_similarity(*steps, dim=0) > 0.998
    assert float(steps[1].norm()) == pytest.approx(float(steps[0].norm()), rel=0.03)


def test_weights_gradients_and_small_steps_keep_float32() -> None:
    made = learner("bfloat16", lr=1e-6)
    before = {name: tensor.clone() for name, tensor in made._pass.model.state_dict().items()}
    updated(made)
    after = made._pass.model.state_dict()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    moved = sum(int((after[name] != tensor).sum()) for name, tensor in before.items())
    assert moved > 0.5 * sum(tensor.numel() for tensor in before.values()), "bfloat16 weights would not have moved"


def test_the_teachers_head_keeps_its_own_precision() -> None:
    exact, mixed = (asyncio.run(learner(compute).measure(stream())) for compute in (None, "bfloat16"))
    assert exact.teacher_logprob is not None and mixed.teacher_logprob is not None
    assert abs(exact.teacher_logprob - mixed.teacher_logprob).max() < 1e-6
    difference = abs(exact.student_logprob - mixed.student_logprob)
    assert 1e-5 < difference.max() < 0.1
