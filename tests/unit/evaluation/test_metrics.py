"""Metrics against hand-worked values, and the majority baseline."""

import numpy as np
import pytest

from minidist.evaluation.lessons import score
from minidist.evaluation.metrics import METRICS, majority, metrics
from minidist.types import Judged

PREDICTED, LABELS = np.array([1, 0, 1, 1, 0, 1]), np.array([1, 0, 0, 1, 1, 1])


def test_metrics_of_classes() -> None:
    # Three true positives, one false one, one miss, one true negative.
    found = metrics(["accuracy", "f1", "macro_f1", "matthews"], PREDICTED, LABELS)
    assert found["accuracy"] == pytest.approx(4 / 6) and found["f1"] == pytest.approx(6 / 8)
    assert found["macro_f1"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert found["matthews"] == pytest.approx((3 * 1 - 1 * 1) / (4 * 4 * 2 * 2) ** 0.5)


def test_metrics_of_scores() -> None:
    predicted, labels = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 3.0, 2.0, 4.0])
    centred = [values - values.mean() for values in (predicted, labels)]
    pearson = (centred[0] * centred[1]).sum() / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    found = metrics(["pearson", "spearman"], predicted, labels)
    assert found["pearson"] == pytest.approx(pearson) and found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))


@pytest.mark.parametrize("name", METRICS)
def test_equal_predictions_give_numbers(name: str) -> None:
    assert np.isfinite(metrics([name], np.zeros(4), np.array([0.0, 1.0, 0.0, 1.0]))[name])
    assert metrics([name], np.zeros(4), np.array([1.0, 1.0, 1.0, 1.0]))[name] == 0


def test_the_majority_is_that_of_the_training_labels() -> None:
    training, labels = np.array([1, 1, 1, 0]), np.array([0, 0, 1, 0])
    assert majority(["accuracy", "f1"], training, labels, scores=False) == pytest.approx({"accuracy": 0.25, "f1": 0.4})
    assert majority(["pearson"], training, labels, scores=True) == {"pearson": 0}


def test_a_score_has_its_metrics_and_the_mean_loss() -> None:
    judged = Judged(PREDICTED, LABELS, np.array([0.5, 1.5]))
    assert score(["accuracy"], judged) == pytest.approx({"accuracy": 4 / 6, "loss": 1.0})
