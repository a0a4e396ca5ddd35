"""Whether two models differ on the same prompts: over the seeds of their training and over the prompts, and for which of many
pairs one can say so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from minidist.evaluation.better import HIGHER, RANKED, loss
from minidist.types import Array

LEVEL = 0.05
"""Share of wrong ones among the orderings that are called certain, and 1 - the confidence of an interval."""


@dataclass(frozen=True)
class Difference:
    """The mean of one model minus that of another.

    Args:
        mean: the difference.
        low, high: its 95 % interval.
        p: probability of a difference at least as large, of either sign, if there were none.
        adjusted: p after Benjamini and Hochberg's adjustment for all pairs of the table.
    """

    mean: float
    low: float
    high: float
    p: float
    adjusted: float = 1.0

    @property
    def holds(self) -> bool:
        """Whether the models' order is certain, with a false discovery rate of 5 % over all pairs."""
        return self.adjusted <= LEVEL


def difference(left_SP: Array, right_SP: Array) -> Difference:
    """Difference of the means of two models, each trained with the same S seeds and measured on the same P prompts, P >= 2.

    Seeds and prompts are both samples, so left - right is d_sp = mean + seed_s + prompt_p + rest_sp, and the variance of the
    mean is that of the crossed model of random effects, (MS_seed + MS_prompt - MS_rest) / (S P), where no effect has a negative
    variance; a t interval with the degrees of freedom of Satterthwaite. With one seed: over prompts alone, as if its
    training had no noise.

    Source: Satterthwaite, Biometrics Bulletin 2 (1946); Dorfman, Berbaum & Metz, Investigative Radiology 27 (1992).
    """
    values_SP = np.asarray(left_SP, float) - np.asarray(right_SP, float)
    seeds, prompts = values_SP.shape
    assert prompts > 1
    mean = float(values_SP.mean())
    of_prompts = seeds * float(values_SP.mean(0).var(ddof=1))
    if seeds == 1:
        return _interval(mean, of_prompts / prompts, prompts - 1)
    of_seeds = prompts * float(values_SP.mean(1).var(ddof=1))
    rest_SP = values_SP - values_SP.mean(0) - values_SP.mean(1, keepdims=True) + mean
    freedom = (seeds - 1) * (prompts - 1)
    rest = float((rest_SP**2).sum()) / freedom
    of_seeds, of_prompts = max(of_seeds, rest), max(of_prompts, rest)
    total = of_seeds + of_prompts - rest
    parts = of_seeds**2 / (seeds - 1) + of_prompts**2 / (prompts - 1) + rest**2 / freedom
    return _interval(mean, total / values_SP.size, total**2 / parts if parts else 1.0)


def _interval(mean: float, variance: float, freedom: float) -> Difference:
    from scipy.stats import t

    if variance <= 0:  # every seed and prompt has the same difference
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    error = variance**0.5
    half = float(t.ppf(1 - LEVEL / 2, freedom)) * error
    return Difference(mean, mean - half, mean + half, float(2 * t.sf(abs(mean) / error, freedom)))


@dataclass(frozen=True)
class Ranking:
    """Models ranked by a figure.

    Args:
        figure: its name.
        names: the models, the best first.
        means: of each, over all its seeds and prompts.
        differences: of each pair (better, worse) of names.
        seeds, prompts: how many of each the models have in common.
    """

    figure: str
    names: list[str]
    means: dict[str, float]
    differences: dict[tuple[str, str], Difference]
    seeds: int
    prompts: int

    def behind(self, name: str) -> list[str]:
        """Models that are certainly worse."""
        return [other for other in self.names if (found := self.differences.get((name, other))) and found.holds]

    def undecided(self, name: str) -> list[str]:
        """Models whose order with this one is not certain."""
        pairs = {other: self.differences.get((name, other)) or self.differences.get((other, name)) for other in self.names}
        return [other for other, found in pairs.items() if found is not None and not found.holds]

    def records(self) -> list[dict[str, Any]]:
        """Every pair, as a file of JSON holds it."""
        return [
            {
                "figure": self.figure,
                "better": better,
                "worse": worse,
                "difference": each.mean,
                "low": each.low,
                "high": each.high,
            }
            | {"p": each.p, "p_adjusted": each.adjusted, "holds": each.holds, "seeds": self.seeds, "prompts": self.prompts}
            for (better, worse), each in self.differences.items()
        ]


def rank(figure: str, models: Mapping[str, Array]) -> Ranking:
    """The ranking of models by one figure. `models`: of each the values of all seeds and prompts, [S, P], in the same order."""
    from scipy.stats import false_discovery_control

    means = {name: float(values_SP.mean()) for name, values_SP in models.items()}
    names = sorted(means, key=lambda name: loss(figure, means[name]))
    found = {pair: difference(models[pair[0]], models[pair[1]]) for pair in combinations(names, 2)}
    if found:
        adjusted = false_discovery_control([each.p for each in found.values()])
        found = {pair: replace(each, adjusted=float(p)) for (pair, each), p in zip(found.items(), adjusted, strict=True)}
    seeds, prompts = next(iter(models.values())).shape
    return Ranking(figure, names, means, found, seeds, prompts)


def rankings(runs: Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]) -> list[Ranking]:
    """The rankings by all figures that the models have, over the seeds that all have.

    runs: by model and by seed: figures with the value of each prompt.
    """
    shared = set.intersection(*(set(seeds) for seeds in runs.values())) if runs else set()
    found = []
    for figure in RANKED:
        if not shared or not all(figure in runs[name][seed] for name in runs for seed in shared):
            continue
        models = {name: np.array([runs[name][seed][figure] for seed in sorted(shared)], float) for name in runs}
        if len({values_SP.shape for values_SP in models.values()}) == 1 and next(iter(models.values())).shape[1] > 1:
            found.append(rank(figure, models))
    return found


def ranking_lines(ranking: Ranking) -> list[str]:
    """A ranking as a Markdown table: what each model is ahead of, and what it cannot be distinguished from."""
    title = RANKED[ranking.figure]
    higher = "higher" if ranking.figure in HIGHER else "lower"
    counts = f"{ranking.seeds} seed{'s' * (ranking.seeds > 1)} and {ranking.prompts} prompts"
    lines = [f"## Order by {title} ({higher} is better)", ""]
    lines.append(f"|  | {title} | minus the next, 95 % interval | p | certainly ahead of | order not certain with |")
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, after in zip(ranking.names, [*ranking.names[1:], None], strict=True):
        shown = "– | –"
        if after is not None:
            next_one = ranking.differences[name, after]
            shown = f"{next_one.mean:.3f} ({next_one.low:.3f} to {next_one.high:.3f}) | {next_one.p:.2g}"
        cells = [", ".join(names) or "–" for names in (ranking.behind(name), ranking.undecided(name))]
        lines.append(f"| {name} | {ranking.means[name]:.3f} | {shown} | {' | '.join(cells)} |")
    over = f"Paired over {counts}, both as random effects"
    rate = f"certainly: false discovery rate of {LEVEL:.0%} over the {len(ranking.differences)} pairs"
    return [*lines, "", f"{over}; p of the difference to the next; {rate}.", ""]
