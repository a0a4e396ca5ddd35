"""A learner on the scores of a teacher, in each payload: loss and gradient are those of the formula, row by row."""

import asyncio
from collections.abc import Sequence
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
from minidist.data.batching import collate, pack
from minidist.errors import CanaryError
from minidist.protocols import Learner
from minidist.roles.make import RoleContext, make_learner
from minidist.run.canaries import check_teacher
from minidist.teachers.hf import HFTeacher
from minidist.types import Batch, Measures, Stream, TeacherScores, Vocabulary
from tests.support.config import objective_config, teacher_config
from tests.support.tiny import VOCABULARY, random_rollouts, row_logits, tiny_model, tiny_renderer

ROLLOUTS = random_rollouts([(3, 4), (1, 9), (6, 1), (2, 2), (5, 8), (4, 3)])
OBJECTIVES = {
    "forward": objective_config("forward_kl"),
    "reverse": objective_config("reverse_kl"),
    "warm": objective_config("forward_kl", temperature=2.0),
    "cold": objective_config("reverse_kl", temperature=0.5),
    "k2": objective_config("k2"),
}
FEW = 4
PAYLOADS: dict[str, dict[str, Any]] = {
    "hidden": {"payload": "hidden"},
    "all": {"payload": "top_k", "top_k": VOCABULARY},
    "few": {"payload": "top_k", "top_k": FEW},
    "sampled": {"payload": "sampled"},
}
SERVED = [(name, payload) for name in ("forward", "reverse") for payload in ("hidden", "all", "few")]
SERVED += [("warm", "hidden"), ("cold", "hidden"), *(("k2", payload) for payload in PAYLOADS)]
CUTS = [("packed", 1000, 1000), ("packed", 16, 3), ("buckets", 1000, 3), ("buckets", 16, 1000)]


class Pair:
    """A saved student and teacher with padded embeddings, and the teacher's scores in every payload."""

    def __init__(self, path: Path, teacher: PreTrainedModel) -> None:
        self.path, self.model = path, teacher
        padded_student().save_pretrained(path / "student")
        teacher.save_pretrained(path / "teacher")
        self.scores = {name: asyncio.run(self._ask(fields)) for name, fields in PAYLOADS.items()}

    async def _ask(self, fields: dict[str, Any]) -> list[TeacherScores]:
        config = teacher_config(model=str(self.path / "teacher"), batch_tokens=20, **fields)
        teacher = HFTeacher(config, tiny_renderer(), vocabulary=VOCABULARY)
        found = await teacher.score(ROLLOUTS)
        await teacher.close()
        return found

    def stream(self, payload: str, objective: str = "") -> Stream:
        return collate("text", ROLLOUTS, self.scores[payload], objective=objective)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("models"), tiny_model(seed=1, vocabulary=VOCABULARY + 7))


@pytest.fixture(scope="module")
def guess(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair whose teacher is close to uniform."""
    return Pair(tmp_path_factory.mktemp("models"), tiny_model(seed=1, initializer_range=1e-4))


def padded_student() -> PreTrainedModel:
    return tiny_model(vocabulary=VOCABULARY + 3)


def learner_of(pair: Pair, payload: str, **fields: Any) -> Learner:
    """A learner of the saved student that steps by the gradient itself, made as a run makes it."""
    sgd = OptimizerConfig(type="sgd", lr=1.0, grad_clip=None)
    config = LearnerConfig(**({"backend": "single", "optimizer": sgd} | fields))
    teacher = teacher_config(model=str(pair.path / "teacher"), **PAYLOADS[payload])
    context = RoleContext(tiny_renderer(), VOCABULARY, steps=9)
    student = StudentConfig(model=str(pair.path / "student"))
    return make_learner(context, student, config, OBJECTIVES, teacher=teacher)


def update(pair: Pair, stream: Stream, payload: str, **fields: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Figures and gradient of one step."""
    learner = learner_of(pair, payload, **fields)
    metrics = asyncio.run(learner.update(Batch(0, ((stream,),)))).metrics
    after = asyncio.run(learner.weights()).arrays
    asyncio.run(learner.close())
    return metrics, {name: value.detach() - torch.tensor(after[name]) for name, value in padded_student().named_parameters()}


def measure(pair: Pair, payload: str, **fields: Any) -> Measures:
    learner = learner_of(pair, payload, **fields)
    found = asyncio.run(learner.measure(pair.stream(payload)))
    asyncio.run(learner.close())
    return found


def naive(pair: Pair, objective: str, classes: int) -> tuple[float, dict[str, Tensor]]:
    """The mean loss over `classes` listed tokens and the rest, from whole logits, row by row; and its gradient."""
    model, temperature, values = padded_student(), {"warm": 2.0, "cold": 0.5}.get(objective, 1.0), []
    for row in pair.stream("sampled").rows:
        q = (row_logits(model, row)[:, :VOCABULARY] / temperature).softmax(-1)
        p = (row_logits(pair.model, row)[:, :VOCABULARY] / temperature).softmax(-1).detach()
        if objective == "k2":
            tokens = range(len(row.labels)), row.labels.tolist()
            values.append((q[tokens].log() - p[tokens].log()) ** 2 / 2)
            continue
        order = p.argsort(-1, descending=True)
        q, p = (table.gather(-1, order) for table in (q, p))
        if classes < VOCABULARY:
            q, p = (torch.cat([t[:, :classes], t[:, classes:].sum(-1, keepdim=True)], -1) for t in (q, p))
        forward = objective in ("forward", "warm")
        values.append((p * (p / q).log()).sum(-1) if forward else (q * (q / p).log()).sum(-1))
    loss = torch.cat(values).mean()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    differences = torch.stack([(left[name] - right[name]).abs().max() for name in right])
    return float(differences.max())  # torch's max, since Python's ignores a nan


@pytest.mark.parametrize(("layout", "budget", "chunk"), CUTS)
@pytest.mark.parametrize(("objective", "payload"), SERVED)
def test_loss_and_gradient_are_those_of_the_formula(
    pair: Pair, objective: str, payload: str, layout: str, budget: int, chunk: int
) -> None:
    cut = {"layout": layout, "micro_batch_tokens": budget, "chunk_tokens": chunk}
    metrics, gradient = update(pair, pair.stream(payload, objective), payload, **cut)
    loss, wanted = naive(pair, objective, FEW if payload == "few" else VOCABULARY)
    assert metrics["loss/nats_per_token"] == pytest.approx(loss, abs=1e-5)
    assert furthest(gradient, wanted) < 2e-5 * max(1.0, *(float(values.abs().max()) for values in wanted.values()))


@pytest.mark.parametrize("layout", ["packed", "buckets"])
@pytest.mark.parametrize(
    ("objective", "payloads"), [("forward", ("hidden", "all")), ("reverse", ("hidden", "all")), ("k2", PAYLOADS)]
)
def test_payloads_with_enough_information_give_one_loss_and_gradient(
    pair: Pair, objective: str, payloads: Sequence[str], layout: str
) -> None:
    first, *others = (update(pair, pair.stream(payload, objective), payload, layout=layout) for payload in payloads)
    for metrics, gradient in others:
        assert metrics["loss/nats_per_token"] == pytest.approx(first[0]["loss/nats_per_token"], abs=1e-6)
        assert furthest(gradient, first[1]) < 1e-6 * max(1.0, first[0]["learner/grad_norm"])


@pytest.mark.parametrize("objective", ["forward", "reverse"])
def test_the_divergence_over_few_classes_is_smaller(pair: Pair, objective: str) -> None:
    few, whole = (
        update(pair, pair.stream(payload, objective), payload)[0]["loss/nats_per_token"] for payload in ("few", "all")
    )
    assert 0 < few < whole


@pytest.mark.parametrize("payload", PAYLOADS)
def test_teacher_logprob_is_reported_for_every_payload(pair: Pair, payload: str) -> None:
    objective = "k2" if payload == "sampled" else "reverse"
    metrics, _ = update(pair, pair.stream(payload, objective), payload, micro_batch_tokens=16)
    teacher_logprobs = np.concatenate([scores.logprobs for scores in pair.scores["sampled"]])
    assert metrics["text/teacher_logprob_nats"] == pytest.approx(teacher_logprobs.mean(), abs=1e-5)


@pytest.mark.parametrize("layout", ["packed", "buckets"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_measure_gives_divergences_for_hidden_states_alone(pair: Pair, payload: str, layout: str) -> None:
    found, exact = measure(pair, payload, layout=layout, micro_batch_tokens=16, chunk_tokens=4), measure(pair, "hidden")
    teacher_logprobs = np.concatenate([scores.logprobs for scores in pair.scores["sampled"]])
    assert np.abs(found.teacher_logprob - teacher_logprobs).max() < 1e-5
    assert np.abs(found.student_logprob - exact.student_logprob).max() < 1e-5
    assert (found.reverse_kl is not None) == (found.forward_kl is not None) == (payload == "hidden")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_uniform_teacher_is_noticed_in_every_payload(pair: Pair, guess: Pair, payload: str) -> None:
    assert check_teacher(measure(pair, payload), VOCABULARY, 0.02) is not None
    with pytest.raises(CanaryError, match="a uniform guess over 13 tokens"):
        check_teacher(measure(guess, payload), VOCABULARY, 0.02)


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "buckets"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_scores_stay_with_their_tokens(pair: Pair, payload: str, padded: bool) -> None:
    for micro in pack(pair.stream(payload).rows, budget=16, padded=padded):
        of_rows = [pair.scores[payload][index] for index in micro.rows]
        (scored,) = micro.scores
        assert isinstance(scored, TeacherScores) and scored.payload is of_rows[0].payload
        for name in ("logprobs", "top_ids", "top_logprobs", "hidden"):
            arrays, joined = [getattr(scores, name) for scores in of_rows], getattr(scored, name)
            assert (joined is None) == (arrays[0] is None)
            assert joined is None or np.array_equal(joined, np.concatenate(arrays))
            assert joined is None or len(joined) == len(micro.labels)


@pytest.mark.parametrize("name", ["logprobs", "top_ids", "top_logprobs"])
def test_an_array_of_another_length_is_refused(pair: Pair, name: str) -> None:
    scores = list(pair.scores["few"])
    scores[1] = replace(scores[1], **{name: getattr(scores[1], name)[1:]})
    with pytest.raises(AssertionError, match="one entry a generated token"):
        collate("x", ROLLOUTS, scores, objective="")


def test_rows_of_a_stream_have_scores_or_none_has(pair: Pair) -> None:
    few, sampled = pair.stream("few").rows[:1], pair.stream("sampled").rows[1:2]
    with pytest.raises(AssertionError, match="all rows of a stream have scores"):
        pack((*few, replace(sampled[0], scores=None)), budget=1000, padded=False)


@pytest.mark.parametrize("fields", [{}, {"payload": "top_k", "top_k": 14}, {"payload": "top_k", "top_k": 3}], ids=str)
def test_an_id_that_is_absent_takes_no_part(pair: Pair, fields: dict[str, Any]) -> None:
    """The loss, and the teacher's likeliest tokens, are those of models whose heads have no row for it."""
    vocabulary, kept = Vocabulary(VOCABULARY + 2, [VOCABULARY]), [*range(VOCABULARY), VOCABULARY + 1]
    config = teacher_config(model=str(pair.path / "teacher"), **fields)

    async def scored() -> list[TeacherScores]:
        teacher = HFTeacher(config, tiny_renderer(), vocabulary=vocabulary)
        try:
            return await teacher.score(ROLLOUTS)
        finally:
            await teacher.close()

    stream = collate("text", ROLLOUTS, asyncio.run(scored()), objective="forward")
    sgd = OptimizerConfig(type="sgd", lr=1.0, grad_clip=None)
    student = StudentConfig(model=str(pair.path / "student"))
    context, settings = RoleContext(tiny_renderer(), vocabulary, steps=9), LearnerConfig(backend="single", optimizer=sgd)
    learner = make_learner(context, student, settings, OBJECTIVES, teacher=config)
    measures = asyncio.run(learner.measure(stream))
    metrics = asyncio.run(learner.update(Batch(0, ((stream,),)))).metrics
    asyncio.run(learner.close())
    losses, logprobs = [], []
    with torch.no_grad():
        for row in stream.rows:
            q, p = (row_logits(model, row)[:, kept].softmax(-1) for model in (padded_student(), pair.model))
            logprobs += q[range(len(row.labels)), row.labels.tolist()].log().tolist()  # the labels are below the absent id
            if row.scores is not None and row.scores.top_ids is not None:
                best = p.topk(row.scores.top_ids.shape[1]).indices
                assert row.scores.top_ids.tolist() == [[kept[column] for column in line] for line in best.tolist()]
            count = fields.get("top_k", len(kept))
            order = p.argsort(-1, descending=True)
            q, p = (table.gather(-1, order) for table in (q, p))
            if count < len(kept):
                q, p = (torch.cat([each[:, :count], each[:, count:].sum(-1, keepdim=True)], -1) for each in (q, p))
            losses.append((p * (p / q).log()).sum(-1))
    assert metrics["loss/nats_per_token"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert np.abs(measures.student_logprob - np.array(logprobs)).max() < 1e-4
