"""Multiple-choice questions: how often the likeliest choice is right, and whether its probability is calibrated."""

from collections.abc import Sequence

import numpy as np

from minidist.data.questions import Question
from minidist.evaluation.figures import Figure, Figures
from minidist.types import Array

_BINS = 10


def choice_figures(questions: Sequence[Question], rows: Array, logprobs: Array) -> Figures:
    """`accuracy` with its standard error, and `ece`, the expected calibration error.

    rows, logprobs [L]: of every token of every choice, the questions' choices one after the other (`Measures`); L sums over all
    choices. A choice's probability is the softmax, over the question's choices, of their summed log-probabilities.
    """
    sums, start = np.bincount(rows, weights=logprobs), 0
    confidence, right = [], []
    for question in questions:
        choices = sums[start : (start := start + len(question.choices))]
        confidence.append(1 / np.exp(choices - choices.max()).sum())
        right.append(int(choices.argmax()) == question.right)
    return {"accuracy": Figure.of_samples(np.array(right, float)), "ece": Figure(calibration_error(confidence, right))}


def calibration_error(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error: the mean, over ten bins of confidence of equal width, (0, 0.1] to (0.9, 1], of the distance
    between the accuracy and the mean confidence of a bin's answers, weighted by the number of answers.

    confidence, right [N]: probability of the chosen answer of each of N questions, and whether it is right.

    >>> round(calibration_error([0.95, 0.95, 0.55], [True, False, True]), 6)
    0.45

    Source: Naeini et al. (AAAI 2015); Guo et al., arXiv:1706.04599, equation 3.
    """
    values, hits = np.asarray(confidence, float), np.asarray(right, float)
    # The distance of a bin times its number of answers is the absolute value of the sum of their differences.
    bins = np.digitize(values, np.arange(1, _BINS) / _BINS, right=True)
    return float(np.abs(np.bincount(bins, weights=hits - values)).sum() / len(values))
