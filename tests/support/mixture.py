"""The exact distribution of teacher-mixed sampling over all short sequences, and a test of draws against it."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import chisquare
from transformers import PreTrainedModel

from minidist.types import Prompt, Rollout

Law = dict[tuple[int, ...], float]


def law(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompt: Prompt,
    *,
    alpha: float,
    count: int,
    stops: Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    vocabulary: int | None = None,
) -> Law:
    """Probability of every sequence of at most `count` tokens, from both models' forward passes over every prefix."""
    found: Law = {}
    alive: Law = {(): 1.0}
    for _ in range(count):
        prefixes = list(alive)
        read = ((student, prompt), (teacher, prompt.for_teacher))
        q, p = (_tables(model, each, prefixes, temperature, top_p, vocabulary) for model, each in read)
        mixed = alpha * p + (1 - alpha) * q
        grown = {(*prefix, y): alive[prefix] * mixed[i, y] for i, prefix in enumerate(prefixes) for y in range(mixed.shape[1])}
        found |= {sequence: probability for sequence, probability in grown.items() if sequence[-1] in stops}
        alive = {
            sequence: probability for sequence, probability in grown.items() if sequence[-1] not in stops and probability > 0
        }
    return found | alive


@torch.no_grad()
def _tables(
    model: PreTrainedModel,
    prompt: Prompt,
    prefixes: Sequence[tuple[int, ...]],
    temperature: float,
    top_p: float,
    vocabulary: int | None,
) -> np.ndarray:
    """Probabilities [prefixes, V] of the next token, truncated naively."""
    ids = torch.tensor([[*prompt.tokens.tolist(), *prefix] for prefix in prefixes])
    tables = (model(ids).logits[:, -1, :vocabulary].double() / temperature).softmax(-1).numpy()
    for table in tables:
        order = np.argsort(-table)
        kept = int(np.searchsorted(np.cumsum(table[order]), top_p * (1 - 1e-12))) + 1
        table[order[kept:]] = 0
        table /= table.sum()
    return tables


def p_value(expected: Law, rollouts: Sequence[Rollout]) -> float:
    """The p-value of Pearson's chi-square test that the rollouts are draws from `expected`.

    Sequences with fewer than 5 expected draws share a cell with sequences of similar tokens, so that every position is tested.
    """
    drawn = Counter(tuple(rollout.tokens.tolist()) for rollout in rollouts)
    assert drawn.keys() <= {sequence for sequence, probability in expected.items() if probability > 0}, "impossible draws"
    count = len(rollouts)
    cells = {
        sequence: (sequence if probability * count >= 5 else _like(sequence)) for sequence, probability in expected.items()
    }
    wanted: dict[object, float] = defaultdict(float)
    counts: dict[object, int] = defaultdict(int)
    for sequence, probability in expected.items():
        wanted[cells[sequence]] += probability * count
        counts[cells[sequence]] += drawn[sequence]
    large = {cell for cell, number in wanted.items() if number >= 5}
    assert len(large) > 10
    rest = sum(number for cell, number in wanted.items() if cell not in large)
    theory, seen = [wanted[cell] for cell in large], [counts[cell] for cell in large]
    if rest > 1e-6 * count:
        theory, seen = [*theory, rest], [*seen, count - sum(seen)]
    scale = sum(seen) / sum(theory)
    return float(chisquare(seen, [scale * each for each in theory]).pvalue)


def _like(sequence: tuple[int, ...]) -> tuple[str, ...]:
    """A coarser cell: each token id modulo 4."""
    return tuple(f"~{token % 4}" for token in sequence)
