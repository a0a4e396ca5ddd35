"""Questions with a fixed set of answers: how often the likeliest is right, and whether its probability says so."""

from collections.abc import Sequence

import numpy as np

from minidist.data.questions import Question
from minidist.evaluation.text import mean_with_error
from minidist.types import Array

_BINS = 10


def choice_figures(questions: Sequence[Question], rows: Array, logprobs: Array) -> dict[str, float]:
    """Accuracy with its standard error, and expected calibration error.

    rows, logprobs [L]: of every token of every choice, the questions' choices one after the other (`Measures`). A choice's
    probability is the softmax over the question's choices of their summed log-probabilities.
    """
    sums, start = np.bincount(rows, weights=logprobs), 0
    chosen, right = [], []
    for question in questions:
        own = sums[start : (start := start + len(question.choices))]
        chosen.append(1 / np.exp(own - own.max()).sum())
        right.append(int(own.argmax()) == question.right)
    return mean_with_error("accuracy", np.array(right, float)) | {"ece": calibration_error(chosen, right)}


def calibration_error(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error: over ten bins of equal width of the confidence, (0, 0.1] to (0.9, 1], the mean distance
    between how often a bin's answers are right and their mean confidence, weighted by their number.

    confidence, right [N]: probability of each answer given, and whether it was right.

    >>> round(calibration_error([0.95, 0.95, 0.55], [True, False, True]), 6)
    0.45

    Source: Naeini et al. (AAAI 2015); Guo et al., arXiv:1706.04599, equation 3.
    """
    values, hits = np.asarray(confidence, float), np.asarray(right, float)
    # The distance of a bin times its number is the size of its summed differences.
    bins = np.digitize(values, np.arange(1, _BINS) / _BINS, right=True)
    return float(np.abs(np.bincount(bins, weights=hits - values)).sum() / len(values))
