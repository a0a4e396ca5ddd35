"""Generated tasks: text problems with one right answer each, graded exactly. Nothing is downloaded.

The splits train, valid and test share no prompt: a checksum of a prompt's text decides its split.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from minidist.data import reasoning
from minidist.data.splits import SPLITS, belongs
from minidist.errors import DataError

_MOST_ROWS = 10_000_000


@dataclass(frozen=True)
class Task:
    """Problems of one kind: `make(rng, split)` returns the columns of one, with prompt and answer, written in `alphabet`."""

    alphabet: str
    make: Callable[[random.Random, str], dict[str, Any]]


def generate(name: str, *, split: str, rows: int, seed: int) -> list[dict[str, Any]]:
    """`rows` different problems as {"prompt": ..., "answer": ..., ...}, a function of the arguments alone on every machine."""
    if split not in SPLITS:
        raise DataError(f"task:{name} has the splits {', '.join(sorted(SPLITS))}, not {split!r}")
    if rows > _MOST_ROWS:
        raise DataError(
            f"task:{name} is asked for {rows:,} rows; a generated task gives at most {_MOST_ROWS:,}; lower rows and skip"
        )
    task, rng = find(name), random.Random(f"{name}/{split}/{seed}")
    problems: dict[str, dict[str, Any]] = {}
    tries = 0
    while len(problems) < rows:
        problem = task.make(rng, split)
        if belongs(problem["prompt"], split):
            problems[problem["prompt"]] = problem
        tries += 1
        if tries > 100 * rows + 1000:
            raise DataError(f"task:{name} has too few different {split} problems for {rows} rows; ask for {len(problems)}")
    return list(problems.values())


def grade(written: str, answer: str) -> bool:
    """Whether the written text is the answer, apart from white space around it."""
    return written.strip() == answer.strip()


def find(name: str) -> Task:
    """The task with this name. Raises DataError with the known names if there is none."""
    if name not in TASKS:
        raise DataError(f"no generated task is named {name!r}; the tasks are {', '.join(sorted(TASKS))}")
    return TASKS[name]


def _sort(rng: random.Random, _: str) -> dict[str, Any]:
    letters = rng.choices(ascii_lowercase, k=8)
    return {"prompt": "".join(letters) + "=", "answer": "".join(sorted(letters))}


def _addition(rng: random.Random, _: str) -> dict[str, Any]:
    left, right = rng.randrange(1000), rng.randrange(1000)
    return {"prompt": f"{left}+{right}=", "answer": str(left + right)}


def _reverse(rng: random.Random, _: str) -> dict[str, Any]:
    letters = "".join(rng.choice("abcdefghij") for _ in range(rng.randint(5, 8)))
    return {"prompt": letters + "=", "answer": letters[::-1]}


TASKS: dict[str, Task] = {
    "sort": Task(ascii_lowercase + "=", _sort),
    "addition": Task("0123456789+=", _addition),
    "reverse": Task("abcdefghij=", _reverse),
    "last_letters": Task(reasoning.ALPHABET, reasoning.last_letters),
    "coin_flip": Task(reasoning.ALPHABET, reasoning.coin_flip),
    "arithmetic": Task(reasoning.ALPHABET, reasoning.arithmetic),
    "biased": Task(reasoning.ALPHABET, reasoning.biased),
    "judging": Task(reasoning.ALPHABET, reasoning.judging),
}
