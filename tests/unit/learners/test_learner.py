"""The learner's arithmetic against the same loss written out in plain torch; and what stops it."""

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.data.batching import collate
from minidist.errors import CanaryError, DivergedError
from minidist.learners import micro
from minidist.learners.learner import LocalLearner
from minidist.losses import forward_kl, reverse_kl
from minidist.losses.chunked import LinearHead
from minidist.losses.objectives import Match, Supervised
from minidist.losses.targets import Objective, TokenTargets
from minidist.types import Batch, Stream
from tests.support.learners import head_of_teacher, local_learner
from tests.support.tiny import VOCABULARY, hidden_scores, random_rollouts, row_logits, tiny_model

LENGTHS = [(3, 4), (1, 9), (6, 1), (2, 2), (5, 8), (4, 3)]
SGD = OptimizerConfig(type="sgd", lr=1.0, grad_clip=None)
OBJECTIVES: dict[str, Objective] = {
    "reverse": Match(reverse_kl),
    "forward": Match(forward_kl),
    "cold": Match(reverse_kl, 0.5),
    "gold": Supervised(),
}
MakeLearner = Callable[..., LocalLearner]


@pytest.fixture
def make() -> Iterator[MakeLearner]:
    """Makes learners, and ends their threads with the test."""
    made: list[LocalLearner] = []

    def learner(
        model: PreTrainedModel,
        teacher: PreTrainedModel | None = None,
        *,
        objectives: Any = OBJECTIVES,
        steps: int = 10,
        **fields: Any,
    ) -> LocalLearner:
        head = None if teacher is None else head_of_teacher(teacher)
        config = LearnerConfig(**({"optimizer": SGD} | fields))
        made.append(local_learner(model, config, objectives, steps=steps, teacher=head))
        return made[-1]

    yield learner
    for learner_ in made:
        asyncio.run(learner_.close())


def own_text(teacher: PreTrainedModel, objective: str, weight: float = 1.0, seed: int = 0) -> Stream:
    rollouts = random_rollouts(LENGTHS, seed=seed)
    return collate(objective, rollouts, hidden_scores(teacher, rollouts), objective=objective, weight=weight)


def gold_text(weight: float = 1.0, seed: int = 1) -> Stream:
    return collate("gold", random_rollouts(LENGTHS[:3], seed=seed), weight=weight)


def naive_loss(model: PreTrainedModel, teacher: PreTrainedModel, streams: tuple[Stream, ...]) -> Tensor:
    """The formulas once more, row by row: sum over streams of weight * mean over that stream's tokens."""
    total = torch.zeros(())
    for stream in streams:
        values = []
        for row in stream.rows:
            heat = 0.5 if stream.objective == "cold" else 1.0
            q = (row_logits(model, row) / heat).log_softmax(-1)
            with torch.no_grad():
                p = (row_logits(teacher, row) / heat).log_softmax(-1)
            if stream.objective == "gold":
                values.append(-q[range(len(row.labels)), row.labels])
            elif stream.objective == "forward":
                values.append((p.exp() * (p - q)).sum(-1))
            else:
                values.append((q.exp() * (q - p)).sum(-1))
        total = total + stream.weight * torch.cat(values).mean()
    return total


def naive_gradient(model: PreTrainedModel, teacher: PreTrainedModel, streams: tuple[Stream, ...]) -> dict[str, Tensor]:
    loss = naive_loss(model, teacher, streams)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def copy_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def unchanged(model: PreTrainedModel, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(p.nan_to_num(7.0), before[name].nan_to_num(7.0)) for name, p in model.named_parameters())


def step(learner: LocalLearner, *streams: Stream) -> dict[str, float]:
    return asyncio.run(learner.update(Batch(0, (streams,)))).metrics


STREAMS: dict[str, Callable[[PreTrainedModel], tuple[Stream, ...]]] = {
    "reverse": lambda teacher: (own_text(teacher, "reverse"),),
    "forward": lambda teacher: (own_text(teacher, "forward"),),
    "cold": lambda teacher: (own_text(teacher, "cold"),),
    "gold": lambda teacher: (gold_text(),),
    "two streams": lambda teacher: (own_text(teacher, "reverse", 0.7), gold_text(2.5)),
}


@pytest.mark.parametrize("chunk", [1000, 3])
@pytest.mark.parametrize("budget", [1000, 16, 1])
@pytest.mark.parametrize("layout", ["packed", "buckets"])
@pytest.mark.parametrize("name", STREAMS)
def test_gradient_is_that_of_the_whole_batch(make: MakeLearner, name: str, layout: str, budget: int, chunk: int) -> None:
    model, teacher = tiny_model(), tiny_model(seed=1)
    streams, before = STREAMS[name](teacher), copy_of(model)
    loss, wanted = naive_loss(model, teacher, streams), naive_gradient(model, teacher, streams)
    metrics = step(make(model, teacher, layout=layout, micro_batch_tokens=budget, chunk_tokens=chunk), *streams)
    assert metrics["learner/micro_batches"] >= {1000: 1, 16: 2, 1: 3}[budget]
    assert metrics["loss/nats_per_token"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["learner/grad_norm"] == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in wanted.values())), rel=1e-4)
    for parameter_name, parameter in model.named_parameters():
        got, want = before[parameter_name] - parameter.detach(), wanted[parameter_name]
        assert (got - want).abs().max() < 2e-5 * max(1.0, float(want.abs().max())), parameter_name


def test_the_metrics_of_a_step_are_means_over_its_tokens(make: MakeLearner) -> None:
    model, teacher = tiny_model(), tiny_model(seed=1)
    own = own_text(teacher, "reverse")
    with torch.no_grad():
        pairs = [(row_logits(m, row).log_softmax(-1), row.labels) for m in (model, teacher) for row in own.rows]
        logprobs = [float(table[range(len(labels)), labels].sum()) for table, labels in pairs]
    metrics = step(make(model, teacher), own, gold_text())
    assert metrics["reverse/student_logprob_nats"] == pytest.approx(sum(logprobs[:6]) / own.loss_tokens, abs=1e-5)
    assert metrics["reverse/teacher_logprob_nats"] == pytest.approx(sum(logprobs[6:]) / own.loss_tokens, abs=1e-5)
    assert "gold/teacher_logprob_nats" not in metrics
    assert metrics["learner/loss_tokens"] == own.loss_tokens + gold_text().loss_tokens
    assert metrics["learner/lr"] == 1.0


def test_a_step_clears_its_gradient(make: MakeLearner) -> None:
    model, teacher, streams = tiny_model(), tiny_model(seed=1), (gold_text(),)
    learner = make(model, optimizer=OptimizerConfig(type="sgd", lr=0.01, grad_clip=None))
    step(learner, *streams)
    before, wanted = copy_of(model), naive_gradient(model, teacher, streams)
    step(learner, *streams)
    name = "lm_head.weight"
    assert torch.allclose(before[name] - model.get_parameter(name), 0.01 * wanted[name], atol=1e-6)


def test_gradient_is_clipped_to_its_norm(make: MakeLearner) -> None:
    model = tiny_model()
    before = copy_of(model)
    metrics = step(make(model, optimizer=OptimizerConfig(type="sgd", lr=1.0, grad_clip=0.01)), gold_text())
    moved = math.sqrt(sum(float(((before[name] - p.detach()) ** 2).sum()) for name, p in model.named_parameters()))
    assert metrics["learner/grad_norm"] > 0.01
    assert moved == pytest.approx(0.01, rel=1e-2)


def test_shared_vocabulary_is_sliced_before_the_softmax(make: MakeLearner) -> None:
    model, teacher, stream = tiny_model(vocabulary=20), tiny_model(seed=1), own_text(tiny_model(seed=1), "forward")
    head = LinearHead(teacher.lm_head.weight.detach(), vocabulary=VOCABULARY)
    learner = local_learner(model, LearnerConfig(optimizer=SGD), OBJECTIVES, teacher=head, vocabulary=VOCABULARY)
    values = []
    with torch.no_grad():
        for row in stream.rows:
            q, p = row_logits(model, row)[:, :VOCABULARY].log_softmax(-1), row_logits(teacher, row).log_softmax(-1)
            values.append((p.exp() * (p - q)).sum(-1))
    assert step(learner, stream)["loss/nats_per_token"] == pytest.approx(torch.cat(values).mean().item(), abs=1e-5)
    asyncio.run(learner.close())


class Infinite(Objective):
    """A loss that is not finite."""

    temperature = 1.0

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        return student_NV[:, 0] * math.inf


class NoSlope(Infinite):
    """A finite loss whose gradient is nan: the root has no slope at zero."""

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        return (student_NV[:, 0] * 0).abs().sqrt()


def test_weights_that_are_nan_stop_the_step(make: MakeLearner) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3, 5] = math.nan
    before = copy_of(model)
    with pytest.raises(DivergedError, match="loss of stream gold is nan"):
        step(make(model), gold_text())
    assert unchanged(model, before)


def test_infinite_loss_stops_the_step(make: MakeLearner) -> None:
    model = tiny_model()
    before = copy_of(model)
    with pytest.raises(DivergedError, match=r"loss of stream gold is -?inf"):
        step(make(model, objectives={"gold": Infinite()}), gold_text())
    assert unchanged(model, before)


@pytest.mark.parametrize("chunk", [1000, 3])
def test_gradient_that_is_nan_is_named_and_stops_the_step(make: MakeLearner, chunk: int) -> None:
    model = tiny_model()
    before = copy_of(model)
    with pytest.raises(DivergedError, match=r"step 0: the gradient of [\w.]+ is not finite; nothing was updated") as caught:
        step(make(model, objectives={"gold": NoSlope()}, chunk_tokens=chunk, micro_batch_tokens=16), gold_text())
    assert str(caught.value).split("gradient of ")[1].split(" is not")[0] in before
    assert unchanged(model, before)


class NoSlopeAtFirst(NoSlope):
    """The gradient of the first micro-batch alone is nan."""

    calls = 0

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        self.calls += 1
        return super().__call__(student_NV, targets) if self.calls == 1 else -student_NV[:, 0]


def test_gradient_that_is_nan_in_one_micro_batch_stops_the_step(make: MakeLearner) -> None:
    model = tiny_model()
    before = copy_of(model)
    with pytest.raises(DivergedError, match="is not finite"):
        step(make(model, objectives={"gold": NoSlopeAtFirst()}, micro_batch_tokens=1), gold_text())
    assert unchanged(model, before)


def test_a_stopped_step_leaves_no_gradient(make: MakeLearner) -> None:
    """The next good step is as if the bad one had not been."""
    model, teacher, streams = tiny_model(), tiny_model(seed=1), (gold_text(),)
    wanted, before = naive_gradient(model, teacher, streams), copy_of(model)
    learner = make(model, objectives={"gold": Supervised(), "bad": NoSlope()})
    with pytest.raises(DivergedError):
        step(learner, *streams, replace(gold_text(), objective="bad"))
    update = asyncio.run(learner.update(Batch(1, (streams,))))
    assert update.version == 1
    for name, parameter in model.named_parameters():
        assert torch.allclose(before[name] - parameter.detach(), wanted[name], atol=2e-5)


@pytest.mark.parametrize("layout", ["packed", "buckets"])
def test_a_lost_row_stops_the_step(make: MakeLearner, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    whole = micro.grouped
    monkeypatch.setattr(micro, "grouped", lambda rows, **options: whole(rows, **options)[:-1])
    model = tiny_model()
    before = copy_of(model)
    with pytest.raises(CanaryError, match=r"labels were counted but .* trained"):
        step(make(model, layout=layout, micro_batch_tokens=12), gold_text())
    assert unchanged(model, before)


@pytest.mark.parametrize(("layout", "temperature"), [("packed", 1.0), ("buckets", 1.0), ("packed", 2.0)])
def test_measure_is_per_token_and_in_row_order(make: MakeLearner, layout: str, temperature: float) -> None:
    model, teacher = tiny_model(), tiny_model(seed=1)
    stream, before = own_text(teacher, "reverse"), copy_of(model)
    learner = make(model, teacher, layout=layout, micro_batch_tokens=20, chunk_tokens=4)
    found = asyncio.run(learner.measure(stream, temperature))
    assert found.row.tolist() == [row for row, (_, written) in enumerate(LENGTHS) for _ in range(written)]
    with torch.no_grad():
        for index, row in enumerate(stream.rows):
            here = found.row == index
            q, p = ((row_logits(m, row) / temperature).log_softmax(-1).double().numpy() for m in (model, teacher))
            places = range(len(row.labels))
            assert np.allclose(found.student_logprob[here], q[places, row.labels], atol=1e-5)
            assert np.allclose(found.teacher_logprob[here], p[places, row.labels], atol=1e-5)
            assert np.allclose(found.reverse_kl[here], (np.exp(q) * (q - p)).sum(-1), atol=1e-5)
            assert np.allclose(found.forward_kl[here], (np.exp(p) * (p - q)).sum(-1), atol=1e-5)
    assert unchanged(model, before)


def test_measures_without_a_teacher_are_the_students_alone(make: MakeLearner) -> None:
    found = asyncio.run(make(tiny_model()).measure(gold_text()))
    assert found.teacher_logprob is found.reverse_kl is found.forward_kl is None
    assert len(found.student_logprob) == gold_text().loss_tokens


def test_the_loss_of_the_learner_falls(make: MakeLearner) -> None:
    model, teacher = tiny_model(), tiny_model(seed=1)
    adam = OptimizerConfig(lr=0.01, warmup_steps=3, schedule="cosine")
    learner = make(model, teacher, optimizer=adam, steps=30)
    losses = [step(learner, own_text(teacher, "reverse", seed=at % 2))["loss/nats_per_token"] for at in range(30)]
    assert losses[-1] < 0.3 * losses[0]


def test_learner_follows_the_schedule(make: MakeLearner) -> None:
    learner = make(tiny_model(), optimizer=OptimizerConfig(lr=0.1, schedule="linear"), steps=4)
    assert [step(learner, gold_text())["learner/lr"] for _ in range(3)] == pytest.approx([0.1, 0.075, 0.05])


class Counted(Objective):
    """A supervised loss with one figure: the number of its tokens whose label is odd."""

    temperature = 1.0
    figures = ("count/odd_frac",)

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        return Supervised()(student_NV, targets)

    def explain(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        return (targets.labels_N % 2).to(student_NV)[:, None]


def odd_share(stream: Stream) -> float:
    return float(np.concatenate([row.labels % 2 for row in stream.rows]).mean())


def test_figures_keep_their_names_on_the_main_stream_and_bear_the_streams_name_on_others(make: MakeLearner) -> None:
    main, first, second = (replace(gold_text(seed=seed), name=n, objective=n) for seed, n in enumerate(("main", "one", "two")))
    objectives = dict.fromkeys(("main", "one", "two"), Counted())
    metrics = step(make(tiny_model(), objectives=objectives, micro_batch_tokens=12, chunk_tokens=3), main, first, second)
    assert {name: value for name, value in metrics.items() if "count/" in name} == {
        "count/odd_frac": pytest.approx(odd_share(main)),
        "one/count/odd_frac": pytest.approx(odd_share(first)),
        "two/count/odd_frac": pytest.approx(odd_share(second)),
    }
    assert len({odd_share(stream) for stream in (main, first, second)}) == 3


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_learner_that_slept_between_two_steps_goes_on_as_if_it_had_not(make: MakeLearner, kind: str) -> None:
    teacher, optimizer = tiny_model(seed=1), OptimizerConfig(type=kind, lr=0.1)  # type: ignore[arg-type]
    found = []
    for sleeps in (False, True):
        model = tiny_model()
        learner = make(model, teacher, optimizer=optimizer)
        step(learner, own_text(teacher, "reverse"))
        if sleeps:
            asyncio.run(learner.sleep())
            asyncio.run(learner.wake())
        step(learner, own_text(teacher, "reverse", seed=3))
        found.append(copy_of(model))
    assert all(torch.equal(each, found[1][name]) for name, each in found[0].items())
