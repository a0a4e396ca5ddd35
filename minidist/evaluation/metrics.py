"""Figures of predictions on labelled rows, from scikit-learn and scipy."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidist.types import Array


def metrics(names: Sequence[str], predicted: Array, labels: Array) -> dict[str, float]:
    """The metrics by name.

    Args:
        names: accuracy; f1, of class 1; macro_f1, the mean over classes; matthews; pearson and spearman, of scores.
        predicted: class numbers or scores, [N].
        labels: the same of the right answers, [N].

    Where all predictions, or all labels, are equal, f1 of a class nobody predicts or has, matthews, pearson and spearman are 0.

    >>> metrics(["accuracy", "f1"], np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))
    {'accuracy': 0.75, 'f1': 0.8}
    """
    return {name: float(METRICS[name](predicted, labels)) for name in names}


def majority(names: Sequence[str], training: Array, labels: Array, *, scores: bool) -> dict[str, float]:
    """The metrics of a model that always predicts the most frequent class of the training labels, or their mean score."""
    values, counts = np.unique(training, return_counts=True)
    constant = training.mean() if scores else values[counts.argmax()]
    return metrics(names, np.full(len(labels), constant), labels)


def _accuracy(predicted: Array, labels: Array) -> float:
    return float((predicted == labels).mean())


def _f1(predicted: Array, labels: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, labels=[1], average="macro", zero_division=0))  # type: ignore[arg-type]


def _macro_f1(predicted: Array, labels: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0))  # type: ignore[arg-type]


def _matthews(predicted: Array, labels: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _pearson(predicted: Array, labels: Array) -> float:
    from scipy.stats import pearsonr

    found: Any = pearsonr(predicted, labels) if not _constant(predicted, labels) else [0.0]
    return float(found[0])


def _spearman(predicted: Array, labels: Array) -> float:
    from scipy.stats import spearmanr

    found: Any = spearmanr(predicted, labels) if not _constant(predicted, labels) else [0.0]
    return float(found[0])


def _constant(*columns: Array) -> bool:
    return any(len(values) < 2 or bool((values == values[0]).all()) for values in columns)


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
"""Each metric's function of predictions and labels."""
