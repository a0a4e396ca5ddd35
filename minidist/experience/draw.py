"""Random draws of a step: which rows, who writes, and with which seed. Each is a function of its arguments alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

from minidist.config.rollout import RolloutConfig
from minidist.config.text import PrefixConfig
from minidist.types import Array, Sampling, Writer

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shuffled(Generic[Item]):
    """`size` of the items at each step: one shuffled pass over all items after another."""

    items: Sequence[Item]
    size: int
    seed: int

    def at(self, step: int) -> list[Item]:
        """The items of step `step`."""
        return [self.items[index] for index in draw_rows(len(self.items), self.size, step=step, seed=self.seed)]


@dataclass(frozen=True)
class Part(Generic[Item]):
    """Items with their share of all rows, from 0 to 1, and the seed of their order."""

    items: Sequence[Item]
    share: float
    seed: int


@dataclass(frozen=True)
class Mixture(Generic[Item]):
    """`size` items at each step: of every part its share, evenly spaced and exact to one row at each step, and `main` the rest.

    The items of each part come in one shuffled pass over it after another. Without parts it is `Shuffled`.
    """

    main: Shuffled[Item]
    parts: Sequence[Part[Item]]

    def at(self, step: int) -> list[Item]:
        """The items of step `step`."""
        size = self.main.size
        return [self._item(position) for position in range(step * size, (step + 1) * size)]

    def _item(self, position: int) -> Item:
        left = Fraction(1)
        for part in self.parts:
            share = Fraction(part.share).limit_denominator(1_000_000)
            before, after = (int(count * share / left) for count in (position, position + 1))
            if after > before:
                return part.items[row_at(len(part.items), before, part.seed)]
            position, left = position - before, left - share
        return self.main.items[row_at(len(self.main.items), position, self.main.seed)]


def row_at(count: int, position: int, seed: int) -> int:
    """The row at a position of one shuffled pass over `count` rows after another."""
    return int(_order(count, seed, position // count)[position % count])


def draw_rows(count: int, size: int, *, step: int, seed: int) -> list[int]:
    """Indices of the `size` rows of step `step`: one shuffled pass over `count` rows after another.

    >>> [draw_rows(3, 2, step=step, seed=0) for step in range(3)]  # two passes in three steps
    [[2, 0], [1, 2], [0, 1]]
    """
    return [row_at(count, position, seed) for position in range(step * size, (step + 1) * size)]


@lru_cache(maxsize=16)
def _order(count: int, seed: int, epoch: int) -> Array:
    return np.random.default_rng([seed, epoch]).permutation(count)


def draw_writers(prefix: PrefixConfig, count: int, *, step: int, seed: int) -> list[Writer]:
    """Who answers each of the step's `count` prompts: every writer within one row of its share, or one for the whole step.

    The draw is unbiased: over many steps, each row has each writer with the probability of the writer's share.
    """
    rng = np.random.default_rng([seed, step, 1])
    shares = {Writer.STUDENT: prefix.student, Writer.TEACHER: prefix.teacher, Writer.DATASET: prefix.dataset}
    # Shares may add up to a little less than 1. Without writers of share 0, the rest goes to the last writer that has a share.
    names = [writer for writer, share in shares.items() if share]
    ends = np.cumsum([shares[writer] for writer in names])[:-1]
    # One point in each of `count` equal parts of the unit interval, in random order: stratified, so the shares are kept.
    points = [rng.random()] * count if prefix.per == "step" else (rng.permutation(count) + rng.random()) / count
    return [names[index] for index in np.searchsorted(ends, points, side="right")]


def collection_sampling(config: RolloutConfig, step: int, *, seed: int) -> Sampling:
    """How the answers of step `step` are sampled, by student and teacher alike; every step has a seed of its own."""
    return Sampling(
        samples=config.samples_per_prompt,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=int(np.random.SeedSequence([seed, step]).generate_state(1)[0]),
    )
