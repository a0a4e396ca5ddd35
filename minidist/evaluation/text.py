"""Figures of written text: length, truncation, repetition, accuracy, ROUGE-L."""

from collections.abc import Sequence

import numpy as np

from minidist.data.tasks import grade
from minidist.types import Array, Finish, Rollout

_N = 4  # of the n-grams whose repetition is counted


def describe_text(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean length (tokens, end-of-sequence included), share truncated, share of repeated 4-grams."""
    return {
        "length_mean_tokens": float(np.mean([len(rollout.tokens) for rollout in rollouts])),
        "truncated_frac": float(np.mean([rollout.finish is Finish.LENGTH for rollout in rollouts])),
        "repetition_frac": repetition([rollout.tokens.tolist() for rollout in rollouts]),
    }


def repetition(texts: Sequence[Sequence[int]]) -> float:
    """Share of 4-grams that occurred before in the same text; 0 when no text is that long.

    >>> repetition([[1, 2, 3, 4, 1, 2, 3, 4]])
    0.2
    """
    total = distinct = 0
    for text in texts:
        grams = [tuple(text[at : at + _N]) for at in range(len(text) - _N + 1)]
        total, distinct = total + len(grams), distinct + len(set(grams))
    return (total - distinct) / total if total else 0.0


def accuracy(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Share of answers that are exactly right, and its standard error."""
    right = np.array([grade(rollout.text, rollout.prompt.answer or "") for rollout in rollouts], dtype=float)
    return mean_with_error("accuracy", right)


def rouge_l(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean ROUGE-L F-measure (stemmed, in percent) against the gold answers, and its standard error.

    Source: Lin, ROUGE (2004), as computed by the `rouge-score` package.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    values = 100 * np.array([scorer.score(r.prompt.answer or "", r.text)["rougeL"].fmeasure for r in rollouts])
    return mean_with_error("rouge_l", values)


def mean_with_error(name: str, values: Array) -> dict[str, float]:
    """Mean of independent values and, from two values on, its standard error as `<name>_se`."""
    error = {f"{name}_se": float(values.std(ddof=1) / len(values) ** 0.5)} if len(values) > 1 else {}
    return {name: float(values.mean())} | error
