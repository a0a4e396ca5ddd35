"""Hidden states from vLLM's pooling runner: those of transformers, and what the learner makes of them."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minidist.config.models import StudentConfig
from minidist.config.teacher import TeacherConfig
from minidist.data.batching import collate
from minidist.models.arrays import to_tensor
from minidist.models.heads import load_teacher_head
from minidist.models.hub import build_student
from minidist.roles.make import RoleContext, make_teacher
from minidist.teachers.hf import HFTeacher
from minidist.types import Batch, Measures, TeacherScores
from tests.integration.conftest import MAX_TOKENS, SHAPE, Stack, save_model, settings
from tests.support.accepted import refusal_or_run
from tests.support.config import make_objective, teacher_config
from tests.support.learners import local_learner
from tests.support.tiny import random_rollouts

EXACT = 2e-4  # nats; float32, two implementations of the same arithmetic
ROLLOUTS = random_rollouts([(3, 4), (1, 9), (6, 1), (2, 40), (8, 40), (47, 1)], vocabulary=29)
"""The last three are as long as a sequence may be."""
QWEN = {key: value for key, value in SHAPE.items() if key != "head_dim"} | {"model_type": "qwen2", "tie_word_embeddings": False}


def test_a_distillation_with_a_pooled_teacher_is_that_with_transformers(tmp_path: Path) -> None:
    """`minidist check` accepts it, and both steps of a run have the losses that they have with the teacher in transformers."""
    losses = {}
    for backend in ("vllm", "hf"):
        (folder := tmp_path / backend).mkdir()
        settings = {"backend": "single", "engine": "hf", "payload": "hidden", "teacher": backend}
        assert refusal_or_run(folder, "gpt2", **settings) is None
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        losses[backend] = [json.loads(line)["loss/nats_per_token"] for line in lines]
    assert min(losses["hf"]) > 0.1 and np.abs(np.subtract(*losses.values())).max() < EXACT


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    """A teacher of another family than the student's."""
    path = tmp_path_factory.mktemp("pooled") / "teacher"
    save_model(path, QWEN, 5)
    return teacher_config(model=str(path), backend="vllm")


@pytest.fixture(scope="module")
def pooled(stack: Stack, teacher: TeacherConfig) -> Iterator[list[TeacherScores]]:
    """The scores of a teacher in vLLM; all of them are asked for at once, and again in another order."""
    context = RoleContext(stack.renderer, max_tokens=MAX_TOKENS)
    actor = stack.run(stack.cluster.host("teacher", make_teacher, context=context, config=teacher))
    scores, again = stack.run(actor.score(ROLLOUTS)), stack.run(actor.score(ROLLOUTS[::-1]))
    for one, two in zip(scores, again[::-1], strict=True):
        assert np.abs(one.hidden - two.hidden).max() < EXACT
    assert stack.run(actor.describe())["payload"] == "hidden"
    yield scores
    stack.dismiss(actor)


@pytest.fixture(scope="module")
def reference(stack: Stack, teacher: TeacherConfig) -> list[TeacherScores]:
    """The scores of the same teacher in transformers."""
    return asyncio.run(HFTeacher(teacher, stack.renderer, vocabulary=None).score(ROLLOUTS))  # type: ignore[arg-type]


def test_the_states_of_all_tokens_are_those_of_transformers(
    pooled: list[TeacherScores], reference: list[TeacherScores]
) -> None:
    for rollout, scores, expected in zip(ROLLOUTS, pooled, reference, strict=True):
        assert scores.payload == "hidden" and scores.hidden is not None and expected.hidden is not None
        assert scores.hidden.shape == (len(rollout.tokens), QWEN["hidden_size"])
        assert scores.hidden_dtype == expected.hidden_dtype and scores.hidden.dtype == expected.hidden.dtype
        assert np.abs(expected.hidden).max() > 1  # no states on which anything agrees
        assert np.abs(scores.hidden - expected.hidden).max() < EXACT


@pytest.mark.parametrize("vocabulary", [None, 20])
@torch.no_grad()
def test_the_head_on_them_gives_the_models_log_probabilities_of_all_classes(
    teacher: TeacherConfig, pooled: list[TeacherScores], vocabulary: int | None
) -> None:
    head, model = load_teacher_head(teacher, vocabulary), AutoModelForCausalLM.from_pretrained(teacher.model).eval()
    for rollout, scores in zip(ROLLOUTS, pooled, strict=True):
        assert scores.hidden is not None
        ids = torch.tensor([[*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()]])
        logits = model(ids).logits[0, len(rollout.prompt.tokens) - 1 : -1, :vocabulary]
        found = head(to_tensor(scores.hidden, scores.hidden_dtype)).log_softmax(-1)
        assert float((found - logits.log_softmax(-1)).abs().max()) < EXACT


def test_an_update_on_them_is_that_on_the_states_of_transformers(
    stack: Stack, teacher: TeacherConfig, pooled: list[TeacherScores], reference: list[TeacherScores]
) -> None:
    taken = [update(stack, teacher, scores) for scores in (pooled, reference)]
    (loss, measured, weights), (expected, wanted, others) = taken
    assert expected > 0.1 and abs(loss - expected) < EXACT
    assert measured.reverse_kl is not None and wanted.reverse_kl is not None
    assert np.abs(measured.reverse_kl - wanted.reverse_kl).max() < EXACT
    assert max(float((weights[name] - others[name]).abs().max()) for name in others) < EXACT


def update(stack: Stack, teacher: TeacherConfig, scores: list[TeacherScores]) -> tuple[float, Measures, dict[str, Any]]:
    """The loss of one update of the student on these scores, the divergences before it, and the weights after it."""
    model = build_student(StudentConfig(model=str(stack.student)), stack.renderer.tokenizer, 0)
    head = load_teacher_head(teacher, None)
    learner = local_learner(model, settings(), {"main": make_objective("reverse_kl")}, teacher=head)
    stream = collate("main", ROLLOUTS, scores, objective="main")
    measures = asyncio.run(learner.measure(stream))
    loss = asyncio.run(learner.update(Batch(0, ((stream,),)))).metrics["loss/nats_per_token"]
    return loss, measures, {name: tensor.detach() for name, tensor in model.state_dict().items()}
