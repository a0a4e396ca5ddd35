"""Every objective of a configuration through the learner: its gradient is that of the whole batch, however it is cut."""

import asyncio
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minidist import losses
from minidist.config.divergences import Divergences
from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.objectives import ObjectiveConfig
from minidist.data.batching import collate
from minidist.learners.learner import LocalLearner
from minidist.losses.objectives import KD, OBJECTIVES, Transport
from minidist.losses.targets import TokenTargets
from minidist.losses.transport import sinkhorn
from minidist.types import Batch, Stream
from tests.support.config import make_objective, objective_config
from tests.support.learners import head_of_teacher, local_learner
from tests.support.tiny import hidden_scores, random_rollouts, row_logits, tiny_model

DIVERGENCES = [kind.model_fields["type"].default for kind in get_args(Divergences)]
LENGTHS = [(3, 4), (1, 9), (6, 1), (2, 2), (5, 8), (4, 3)]
CASES: dict[str, dict[str, Any]] = {name: {"type": name} for name in DIVERGENCES} | {
    "jsd, union, warm": {"type": "jsd", "beta": 0.3, "support": "union", "top_k": 5, "temperature": 2.0},
    "akl, student": {"type": "akl", "support": "student", "top_k": 4},
    "sinkhorn": {"type": "sinkhorn", "group_tokens": 4},
    "sinkhorn, alone": {"type": "sinkhorn", "group_tokens": 3, "paired": "none", "debias": True, "gradient": "envelope"},
    "kd, warm": {"type": "kd", "temperature": 2.0},
}


def text(teacher: PreTrainedModel) -> Stream:
    rollouts = random_rollouts(LENGTHS, seed=0)
    return collate("main", rollouts, hidden_scores(teacher, rollouts), objective="main")


def whole(model: PreTrainedModel, teacher: PreTrainedModel, stream: Stream, options: dict[str, Any]) -> Tensor:
    """Row by row, without chunks, groups made anew from the rows."""
    objective = make_objective(**options)
    total = torch.zeros(())
    for row in stream.rows:
        own = (row_logits(model, row) / objective.temperature).log_softmax(-1)
        with torch.no_grad():
            teacher_table = (row_logits(teacher, row) / objective.temperature).log_softmax(-1)
        group = torch.arange(len(row.labels)) // (objective.group_tokens or 1)
        total = total + objective(own, TokenTargets(torch.as_tensor(row.labels), teacher_table, group_N=group)).sum()
    return total / stream.loss_tokens


@pytest.mark.parametrize(("layout", "budget", "chunk"), [("packed", 1000, 1000), ("packed", 16, 3), ("buckets", 30, 5)])
@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_the_whole_batch(
    learners: list[LocalLearner], name: str, layout: Any, budget: int, chunk: int
) -> None:
    model, teacher = tiny_model(), tiny_model(seed=1)
    stream, before = text(teacher), {name: each.detach().clone() for name, each in model.named_parameters()}
    loss = whole(model, teacher, stream, CASES[name])
    parameters = dict(model.named_parameters())
    wanted = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    sgd = OptimizerConfig(type="sgd", lr=1.0, grad_clip=None)
    config = LearnerConfig(backend="single", optimizer=sgd, layout=layout, micro_batch_tokens=budget, chunk_tokens=chunk)
    objectives = {"main": make_objective(**CASES[name])}
    learners.append(local_learner(model, config, objectives, teacher=head_of_teacher(teacher)))
    metrics = asyncio.run(learners[-1].update(Batch(0, ((stream,),)))).metrics
    assert metrics["loss/nats_per_token"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    for key, parameter in parameters.items():
        got = before[key] - parameter.detach()
        assert (got - wanted[key]).abs().max() < 2e-5 * max(1.0, float(wanted[key].abs().max())), key


def random_tables(rows: int = 8, classes: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student.log_softmax(-1), teacher.log_softmax(-1)


def test_options_reach_the_divergence() -> None:
    student, teacher = random_tables()
    targets = TokenTargets(torch.zeros(8, dtype=torch.long), teacher)
    changed = {
        "jsd": {"beta": 0.1},
        "jsd_normalised": {"beta": 0.9},
        "skew_forward_kl": {"alpha": 0.4},
        "skew_reverse_kl": {"alpha": 0.4},
        "akl": {"mu": 0.3, "head_rule": "paper"},
        "alpha_beta": {"alpha": 0.5, "beta": 0.5},
        "entropy_gated": {"threshold": 1.6},
    }
    for name, options in changed.items():
        found = make_objective(name, **options)(student, targets)
        assert torch.equal(found, getattr(losses, name)(student, teacher, **options))
        assert not torch.allclose(found, make_objective(name)(student, targets)), name


def test_every_objective_has_a_runtime_and_every_divergence_a_function() -> None:
    assert set(get_args(get_args(ObjectiveConfig)[0])) == set(OBJECTIVES)
    for name in DIVERGENCES:
        assert callable(getattr(losses, name))


def test_a_support_that_lists_the_students_tokens_needs_hidden_states() -> None:
    for name in DIVERGENCES:
        assert objective_config(name).needs == "top_k" and objective_config(name, support="union").needs == "hidden"


def test_transport_is_weighted_and_paired_with_a_divergence() -> None:
    student, teacher = random_tables()
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    targets = TokenTargets(torch.zeros(8, dtype=torch.long), teacher, group_N=groups)
    moved = torch.cat([sinkhorn(student[part], teacher[part], epsilon=0.3) for part in (slice(0, 3), slice(3, 8))])
    objective = make_objective("sinkhorn", epsilon=0.3, weight=0.5, paired="reverse_kl")
    assert isinstance(objective, Transport)
    assert torch.allclose(objective(student, targets), 0.5 * moved + losses.reverse_kl(student, teacher))
    assert torch.allclose(objective.explain(student, targets)[:, 0], moved)
    alone = make_objective("sinkhorn", epsilon=0.3, weight=1.0, paired="none")
    assert torch.allclose(alone(student, targets), moved)
    top = TokenTargets(targets.labels_N, None, *reversed(teacher.topk(6, -1)), group_N=groups)  # type: ignore[arg-type]
    assert torch.allclose(alone(student, top), moved), "K = V"


def test_kd_softens_the_divergence_only() -> None:
    """Cross-entropy at temperature 1; the divergence at t, its gradient in the logits near (z - z') / V times t^2 / t^2."""
    generator = torch.Generator().manual_seed(0)
    own, teacher_table = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    own.requires_grad_()
    labels = torch.tensor([0, 3, 2, 2])

    def loss(ratio: float, heat: float) -> Tensor:
        tables = TokenTargets(labels, (teacher_table / heat).log_softmax(-1))
        return KD(ratio, heat)((own / heat).log_softmax(-1), tables)

    plain = -own.log_softmax(-1)[range(4), labels]
    assert torch.allclose(loss(0.0, 3.0), plain), "no share of the divergence: cross-entropy at 1"
    assert torch.allclose(loss(0.25, 3.0), 0.75 * plain + 0.25 * loss(1.0, 3.0))
    slope = torch.autograd.grad(loss(1.0, 1e4).sum(), own)[0]
    centred = [(table - table.mean(-1, keepdim=True)) for table in (own.detach(), teacher_table)]
    assert torch.allclose(slope, (centred[0] - centred[1]) / 5, atol=1e-3), "a hot divergence matches logits"
    assert loss(1.0, 1e4).isfinite().all()
