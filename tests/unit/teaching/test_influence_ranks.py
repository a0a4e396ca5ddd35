"""Influence by finite differences ranks the rows of a trained classifier as exact products of their gradients do."""

import json

import pytest
import torch
from scipy.stats import spearmanr

from minidist.config.lessons import LGTMConfig
from minidist.config.task import ClassesTask
from minidist.data.labelled import LabelledText
from minidist.learners.group import OneProcess
from minidist.losses.imitation import label_loss
from minidist.teaching.lesson import Lesson
from minidist.teaching.lgtm import LGTM
from minidist.teaching.pair import Pair
from minidist.types import Exercise
from tests.support.classifiers import encoded, predictor
from tests.support.lessons import CE, exact_products, learning
from tests.support.teach import sentences

ROWS = 64
BOTH = {"cross_entropy": {"weight": 0.5}, "kd": {"weight": 0.5}}
ADAMW = {"type": "adamw", "lr": 1e-3, "grad_clip": 1.0}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Exercise]:
    """A student and a teacher of BERT's class in float32 that have learnt the sentences, 64 rows of which every eighth has the
    other label, and 32 rows held out."""
    folder = tmp_path_factory.mktemp("ranks")
    models = [predictor(folder / name, "bert", seed=seed) for seed, name in enumerate(("student", "teacher"))]
    texts = [json.loads(line) for line in sentences(folder / "rows.jsonl", 2 * ROWS, 0).read_text().splitlines()]
    read = [LabelledText(at, each["text"], label=each["label"] ^ (at % 8 == 0)) for at, each in enumerate(texts)]
    rows = tuple(encoded(models[0], ClassesTask(names=["negative", "positive"]), read))
    for name, made in zip(("student", "teacher"), models, strict=True):
        alone = Lesson(Pair(learning(name, made, CE, optimizer=ADAMW), None, ROWS, OneProcess()))
        for step in range(20):
            alone.teach(Exercise(step, rows[:ROWS], rows[:ROWS]))
    student, teacher = (learning(name, made, BOTH) for name, made in zip(("student", "teacher"), models, strict=True))
    return Pair(student, teacher, ROWS, OneProcess()), Exercise(0, rows[:ROWS], rows[:ROWS], rows[ROWS : ROWS + 32])


@pytest.fixture(scope="module")
def exact_B(drawn: tuple[Pair, Exercise]) -> torch.Tensor:
    """<gradient of each row's loss, gradient of the held-out loss>, [B], by one backward pass a row."""
    pair, exercise = drawn
    parameters = list(pair.student.parameters.values())
    held = label_loss(pair.student.predictor.predict(exercise.feedback)).mean()
    loss_B, _ = pair.student.loss(*pair.predictions(pair.student, next(iter(pair.micros(exercise)))))
    return exact_products(loss_B, parameters, torch.autograd.grad(held, parameters))


@pytest.mark.parametrize(("radius", "least"), [(0.1, 0.99), (0.01, 0.9999), (0.001, 0.9999)])
def test_64_rows_are_ranked_as_by_exact_products(
    drawn: tuple[Pair, Exercise], exact_B: torch.Tensor, radius: float, least: float
) -> None:
    pair, exercise = drawn
    found_B = LGTM(pair, LGTMConfig(radius=radius)).influence(exercise)
    assert spearmanr(found_B, exact_B).statistic > least


def test_the_default_radius_gives_each_row_its_sign_and_size(drawn: tuple[Pair, Exercise], exact_B: torch.Tensor) -> None:
    pair, exercise = drawn
    found_B = LGTM(pair, LGTMConfig()).influence(exercise)
    assert 10 < int((exact_B < 0).sum()) < 54  # of both kinds
    assert torch.equal(found_B.sign(), exact_B.sign())
    assert (found_B - exact_B).abs().max() < 1e-3 * exact_B.abs().max()
