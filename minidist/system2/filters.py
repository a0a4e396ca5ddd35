"""Consistency filters: which of a row's answers is kept, if any, because the samples, or changed inputs, agree on it.

No gold answer is used. Majority over samples: Wang et al., self-consistency, arXiv:2203.11171. The model's own choice: Chen et
al., universal self-consistency, arXiv:2311.17311. Both, and changed inputs, as filters of training data: Yu et al., System 2
distillation, arXiv:2407.06023.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minidist.system2.programs import TIE, Row


@dataclass(frozen=True)
class Vote:
    """What the answers to a row agree on.

    Args:
        answer: the first answer written in the form that most answers share; None where there is none.
        agreement: share of all answers that have this form, from 0 to 1.
        votes: number of answers of each form, most first.
    """

    answer: str | None
    agreement: float
    votes: dict[str, int]


def majority(answers: Sequence[str], normalise: Callable[[str], str]) -> Vote:
    """The answer that most samples give, up to its form; an empty form is no answer, but counts as a sample.

    A tie for the most has no winner, so that the row is dropped: which of the tied comes first is chance.

    >>> majority(["4", "4.0", "5"], NORMALISERS["number"])
    Vote(answer='4', agreement=0.6666666666666666, votes={'4': 2, '5': 1})
    """
    forms = [normalise(answer) for answer in answers]
    counts = Counter(form for form in forms if form)
    ranked = dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
    (best, most), *others = [*ranked.items(), ("", 0)]
    if not most or (others and others[0][1] == most):
        return Vote(None, most / len(answers), ranked)
    return Vote(answers[forms.index(best)], most / len(answers), ranked)


def chosen(reply: str, answers: Sequence[str]) -> str:
    """The answer that a reply names as "Response X", counted from 1; the first where it names none."""
    found = re.findall(r"[Rr]esponse\s*#?(\d+)", reply)
    number = int(found[-1]) if found else 1
    return answers[number - 1] if 1 <= number <= len(answers) else answers[0]


@dataclass(frozen=True)
class Changed:
    """A row with a changed input, and the way back: what an answer to it means for the row as it was."""

    row: Row
    back: Callable[[str], str]


def shuffled_options(row: Row, rng: random.Random) -> Changed:
    """The row with its `options` in another order. An answer that is the letter of an option is mapped back; the text of an
    option means the same in any order."""
    options: list[Any] = list(row["options"])
    order = list(range(len(options)))
    while len(order) > 1 and order == sorted(order):
        rng.shuffle(order)
    letters = {chr(ord("A") + new): chr(ord("A") + old) for new, old in enumerate(order)}
    return Changed(
        {**row, "options": [options[old] for old in order]}, lambda answer: letters.get(answer.strip("(). "), answer)
    )


def swapped_responses(row: Row, _: random.Random) -> Changed:
    """The row with its two responses in the other order; A means B, and a tie remains one."""
    other = {"A": "B", "B": "A", TIE: TIE}
    changed = {**row, "response_a": row["response_b"], "response_b": row["response_a"]}
    return Changed(changed, lambda answer: other.get(answer.strip("(). "), answer))


def paraphrased(row: Row, rng: random.Random) -> Changed:
    """The row with one of its `paraphrases` as the prompt."""
    return Changed({**row, "prompt": rng.choice(list(row["paraphrases"]))}, str)


@dataclass(frozen=True)
class Perturbation:
    """A change of the input that leaves the right answer as it is; `columns`: what the rows must have; `changes`: the columns
    that are others in a changed row, of which the program's prompts must be made."""

    change: Callable[[Row, random.Random], Changed]
    columns: frozenset[str]
    changes: frozenset[str]


_OPTIONS, _RESPONSES = frozenset({"options"}), frozenset({"response_a", "response_b"})

PERTURBATIONS: dict[str, Perturbation] = {
    "shuffled_options": Perturbation(shuffled_options, _OPTIONS, _OPTIONS),
    "swapped_responses": Perturbation(swapped_responses, _RESPONSES, _RESPONSES),
    "paraphrased": Perturbation(paraphrased, frozenset({"paraphrases"}), frozenset({"prompt"})),
}
"""The changes of inputs, by their names in a configuration."""
