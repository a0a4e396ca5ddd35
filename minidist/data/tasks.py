"""Generated tasks: text problems with one right answer each, graded exactly. Nothing is downloaded.

The splits train, valid and test share no prompt: a checksum of a prompt's text decides its split.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_lowercase

from minidist.errors import DataError

_SPLITS = {"test": range(0, 1), "valid": range(1, 2), "train": range(2, 10)}


@dataclass(frozen=True)
class Task:
    """Problems of one kind: `make(rng)` returns a prompt and its answer, written in `alphabet`."""

    alphabet: str
    make: Callable[[random.Random], tuple[str, str]]


def generate(name: str, *, split: str, rows: int, seed: int) -> list[dict[str, str]]:
    """`rows` different problems as {"prompt": ..., "answer": ...}, a function of the arguments alone on every machine."""
    if split not in _SPLITS:
        raise DataError(f"task:{name} has the splits {', '.join(sorted(_SPLITS))}, not {split!r}")
    task, rng = find(name), random.Random(f"{name}/{split}/{seed}")
    problems: dict[str, str] = {}
    tries = 0
    while len(problems) < rows:
        prompt, answer = task.make(rng)
        if zlib.crc32(prompt.encode()) % 10 in _SPLITS[split]:
            problems[prompt] = answer
        tries += 1
        if tries > 100 * rows + 1000:
            raise DataError(f"task:{name} has too few different {split} problems for {rows} rows; ask for {len(problems)}")
    return [{"prompt": prompt, "answer": answer} for prompt, answer in problems.items()]


def grade(written: str, answer: str) -> bool:
    """Whether the written text is the answer, apart from white space around it."""
    return written.strip() == answer.strip()


def find(name: str) -> Task:
    """The task with this name. Raises DataError with the known names if there is none."""
    if name not in TASKS:
        raise DataError(f"no generated task is named {name!r}; the tasks are {', '.join(sorted(TASKS))}")
    return TASKS[name]


def _sort(rng: random.Random) -> tuple[str, str]:
    letters = rng.choices(ascii_lowercase, k=8)
    return "".join(letters) + "=", "".join(sorted(letters))


def _addition(rng: random.Random) -> tuple[str, str]:
    left, right = rng.randrange(1000), rng.randrange(1000)
    return f"{left}+{right}=", str(left + right)


def _reverse(rng: random.Random) -> tuple[str, str]:
    letters = "".join(rng.choice("abcdefghij") for _ in range(rng.randint(5, 8)))
    return letters + "=", letters[::-1]


TASKS: dict[str, Task] = {
    "sort": Task(ascii_lowercase + "=", _sort),
    "addition": Task("0123456789+=", _addition),
    "reverse": Task("abcdefghij=", _reverse),
}
