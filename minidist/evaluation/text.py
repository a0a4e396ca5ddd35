"""Figures of generated text: length, truncation, repetition, diversity, accuracy, ROUGE-L."""

from collections.abc import Sequence

import numpy as np

from minidist.data.tasks import grade
from minidist.evaluation.figures import Figure
from minidist.types import Finish, Rollout

_N = 4  # tokens in each n-gram whose repetition and diversity are counted


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
    """Share of 4-grams that occurred earlier in the same text; 0 when every text is shorter than four tokens.

    It shows an answer that loops; `distinct` also shows answers that are all alike.

    >>> repetition([[1, 2, 3, 4, 1, 2, 3, 4]])
    0.2
    """
    grams = [_grams(text) for text in texts]
    total = sum(map(len, grams))
    return (total - sum(len(set(of_text)) for of_text in grams)) / total if total else 0.0


def distinct(texts: Sequence[Sequence[int]]) -> float:
    """Distinct-4: different 4-grams of all texts together, as a share of all their 4-grams; 1 when every text is shorter than
    four tokens.

    It falls as the number of texts grows: compare equal numbers of texts. Source: Li et al., arXiv:1510.03055.

    >>> distinct([[1, 2, 3, 4], [1, 2, 3, 4]])
    0.5
    """
    grams = [gram for text in texts for gram in _grams(text)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _grams(text: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(text[start : start + _N]) for start in range(len(text) - _N + 1)]


def accuracy(rollouts: Sequence[Rollout]) -> Figure:
    """Share of answers that are exactly right."""
    right = np.array([any(grade(rollout.text, gold) for gold in gold_answers(rollout)) for rollout in rollouts], dtype=float)
    return Figure.of_samples(right)


def rouge_l(rollouts: Sequence[Rollout]) -> Figure:
    """Mean ROUGE-L F-measure (stemmed, percent) of each answer and the gold answer most like it.

    Source: Lin, ROUGE (2004), as computed by the `rouge-score` package.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    values = [max(scorer.score(gold, r.text)["rougeL"].fmeasure for gold in gold_answers(r)) for r in rollouts]
    return Figure.of_samples(100 * np.array(values))


def gold_answers(rollout: Rollout) -> tuple[str, ...]:
    """All gold answers to the rollout's prompt."""
    return rollout.prompt.references or (rollout.prompt.answer or "",)
