"""Figures of written text: length, truncation, repetition, diversity, accuracy, ROUGE-L."""

from collections.abc import Sequence

import numpy as np

from minidist.data.tasks import grade
from minidist.types import Array, Finish, Rollout

_N = 4  # of the n-grams whose repetition and diversity are counted


def describe_text(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean length (tokens, end-of-sequence included), share truncated, shares of repeated and of distinct 4-grams."""
    texts = [rollout.tokens.tolist() for rollout in rollouts]
    return {
        "length_mean_tokens": float(np.mean([len(text) for text in texts])),
        "truncated_frac": float(np.mean([rollout.finish is Finish.LENGTH for rollout in rollouts])),
        "repetition_frac": repetition(texts),
        "distinct_4": distinct(texts),
    }


def repetition(texts: Sequence[Sequence[int]]) -> float:
    """Share of 4-grams that occurred before in the same text; 0 when no text is that long.

    It sees an answer that goes in circles, and not that all answers are the same one, which `distinct` sees too.

    >>> repetition([[1, 2, 3, 4, 1, 2, 3, 4]])
    0.2
    """
    grams = [_grams(text) for text in texts]
    total = sum(map(len, grams))
    return (total - sum(len(set(own)) for own in grams)) / total if total else 0.0


def distinct(texts: Sequence[Sequence[int]]) -> float:
    """Distinct-4: how many different 4-grams there are among all 4-grams of all texts together; 1 when no text is that long.

    It falls as the number of texts grows, so compare equal numbers. Source: Li et al., arXiv:1510.03055.

    >>> distinct([[1, 2, 3, 4], [1, 2, 3, 4]])
    0.5
    """
    grams = [gram for text in texts for gram in _grams(text)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _grams(text: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(text[at : at + _N]) for at in range(len(text) - _N + 1)]


def accuracy(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Share of answers that are exactly right, and its standard error."""
    right = np.array([any(grade(rollout.text, gold) for gold in gold_answers(rollout)) for rollout in rollouts], dtype=float)
    return mean_with_error("accuracy", right)


def rouge_l(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean ROUGE-L F-measure (stemmed, percent), each answer against the gold answer it is most like, and its standard error.

    Source: Lin, ROUGE (2004), as computed by the `rouge-score` package.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    values = [max(scorer.score(gold, r.text)["rougeL"].fmeasure for gold in gold_answers(r)) for r in rollouts]
    return mean_with_error("rouge_l", 100 * np.array(values))


def gold_answers(rollout: Rollout) -> tuple[str, ...]:
    """All gold answers to what was asked."""
    return rollout.prompt.references or (rollout.prompt.answer or "",)


def mean_with_error(name: str, values: Array) -> dict[str, float]:
    """Mean of independent values and, from two values on, its standard error as `<name>_se`."""
    error = {f"{name}_se": float(values.std(ddof=1) / len(values) ** 0.5)} if len(values) > 1 else {}
    return {name: float(values.mean())} | error
