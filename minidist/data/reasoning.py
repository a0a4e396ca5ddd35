"""Generated problems that take several steps, with exact answers and with the steps that lead to them.

A problem is a dict of columns: `prompt`, `answer`, the solution written out (`steps`), and what programs of several calls and
filters need. Names are made of syllables, and splits share no name. The kinds of problem are those of chain of thought (Wei et
al., arXiv:2201.11903: last letters, coin flips), of System 2 attention (Weston and Sukhbaatar, arXiv:2311.11829: questions with
an opinion) and of branch-solve-merge (Saha et al., arXiv:2310.15123: two responses to judge).
"""

import random
from string import ascii_letters, digits
from typing import Any

from minidist.data.splits import belongs

ALPHABET = ascii_letters + digits + " \n\"'.,:;?+-*=()#/"

_ONSETS, _VOWELS, _ENDS = "bdfgklmnprstvz", "aeiou", ("", "", "l", "m", "n", "r", "s", "t")
_NOT_SURE = ("I think the answer is {}, but I am not sure.", "My guess is {}.", "I believe that it is {}.")


def _name(rng: random.Random, split: str) -> str:
    """A name of two syllables that belongs to the split."""
    while True:
        name = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(2)) + rng.choice(_ENDS)
        if belongs(name, split):
            return name.capitalize()


def last_letters(rng: random.Random, split: str) -> dict[str, Any]:
    """The last letters of four names, joined.

    "Mira Tobin Kelu Saran": "anun". `rephrased`: the question in other words, which a model can answer at once.
    """
    names = [_name(rng, split) for _ in range(4)]
    answer = "".join(name[-1] for name in names)
    steps = [f"{name} ends in {name[-1]}." for name in names]
    question = 'Take the last letter of each name in "{}" and join them.'
    return {
        "prompt": question.format(" ".join(names)),
        "answer": answer,
        "steps": " ".join([*steps, f"The answer is {answer}."]),
        "rephrased": "Join these letters: " + ", ".join(name[-1] for name in names) + ".",
    }


def coin_flip(rng: random.Random, split: str) -> dict[str, Any]:
    """Whether a coin is still heads up after some of four people have flipped it: yes for an even number of flips."""
    flips = [(_name(rng, split), rng.random() < 0.5) for _ in range(4)]
    heads, steps = True, []
    for name, flipped in flips:
        heads ^= flipped
        steps.append(f"{name} {'flips' if flipped else 'waits'}: {'heads' if heads else 'tails'}.")
    story = " ".join(f"{name} {'flips' if flipped else 'does not flip'} the coin." for name, flipped in flips)
    answer = "yes" if heads else "no"
    return {
        "prompt": f"A coin is heads up. {story} Is the coin still heads up?",
        "answer": answer,
        "steps": " ".join([*steps, f"The answer is {answer}."]),
        "rephrased": "Is the number of flips even: " + ", ".join("flip" if flipped else "none" for _, flipped in flips) + "?",
    }


def arithmetic(rng: random.Random, split: str) -> dict[str, Any]:
    """A number after five operations, one after another, each result the last digit of the exact one.

    "Start with 7, then + 5, * 3 ...": 7 + 5 = 2, 2 * 3 = 6 ...
    """
    del split  # digits belong to all splits
    value = start = rng.randint(0, 9)
    operations, steps = [], []
    for _ in range(5):
        sign, operand = rng.choice("+-*"), rng.randint(1, 9)
        result = {"+": value + operand, "-": value - operand, "*": value * operand}[sign] % 10
        operations.append(f"{sign} {operand}")
        steps.append(f"{value} {sign} {operand} = {result}.")
        value = result
    return {
        "prompt": f"Start with {start} and keep the last digit of each result: {', '.join(operations)}.",
        "answer": str(value),
        "steps": " ".join([*steps, f"The answer is {value}."]),
    }


def biased(rng: random.Random, split: str) -> dict[str, Any]:
    """A question with two options and an opinion of the asker, which is right as often as wrong and does not move the answer.

    `question`: without the opinion. `opinion`: right or wrong. `paraphrases`: the question in other words.
    """
    question, paraphrase, options, answer = rng.choice((_larger, _first_name))(rng, split)
    held = rng.choice(options)
    opinion = rng.choice(_NOT_SURE).format(held)
    return {
        "prompt": f"{question} {opinion}" if rng.random() < 0.5 else f"{opinion} {question}",
        "answer": answer,
        "question": question,
        "options": options,
        "opinion": "right" if held == answer else "wrong",
        "paraphrases": [f"{paraphrase} {opinion}"],
    }


def _larger(rng: random.Random, _: str) -> tuple[str, str, list[str], str]:
    low, high = sorted(rng.sample(range(10, 100), 2))
    options = rng.sample([str(low), str(high)], 2)
    return (
        f"Which number is larger, {options[0]} or {options[1]}?",
        f"What is the larger of {options[0]} and {options[1]}?",
        options,
        str(high),
    )


def _first_name(rng: random.Random, split: str) -> tuple[str, str, list[str], str]:
    options = [_name(rng, split), _name(rng, split)]
    while options[0][0] == options[1][0]:
        options[1] = _name(rng, split)
    asked = f"Which name comes first in the alphabet, {options[0]} or {options[1]}?"
    return asked, f"What is the first of {options[0]} and {options[1]} in the alphabet?", options, min(options)


CRITERIA = ("result: is it right?", "unit: is it named?", "working: is it shown?", "manner: is it polite?")
"""What the responses of `judging` are good or bad in, one criterion a line."""


def judging(rng: random.Random, split: str) -> dict[str, Any]:
    """Two responses to a question, of which one meets more of four criteria; the answer is its letter.

    `question`, `response_a`, `response_b`; `met_a` and `met_b`: which of CRITERIA each meets.
    """
    left, right, unit = rng.randint(2, 49), rng.randint(2, 49), rng.choice(("apples", "meters", "coins", "pages"))
    met_a = met_b = [False]
    while sum(met_a) == sum(met_b):
        met_a, met_b = ([rng.random() < 0.5 for _ in CRITERIA] for _ in range(2))
    response_a, response_b = (_response(rng, left, right, unit, met) for met in (met_a, met_b))
    question = f"{_name(rng, split)} has {left} {unit} and gets {right} more. How many are that?"
    return {
        "prompt": f"Question: {question}\nA: {response_a}\nB: {response_b}\nWhich is better, A or B?",
        "answer": "A" if sum(met_a) > sum(met_b) else "B",
        "question": question,
        "response_a": response_a,
        "response_b": response_b,
        "met_a": met_a,
        "met_b": met_b,
    }


def _response(rng: random.Random, left: int, right: int, unit: str, met: list[bool]) -> str:
    is_right, has_unit, has_working, is_polite = met
    result = str(left + right + (0 if is_right else rng.choice((-10, -2, -1, 1, 2, 10))))
    text = f"{left} + {right} = {result}" if has_working else result
    return text + (f" {unit}" if has_unit else "") + (". I hope that this helps." if is_polite else ".")
