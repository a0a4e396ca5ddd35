"""Generated problems of several steps: answers solved again from the prompt's text alone, and splits that share no name."""

import re

import pytest

from minidist.data import tasks

KINDS = ("last_letters", "coin_flip", "arithmetic", "biased", "judging")


def rows(name: str, split: str = "train", count: int = 300) -> list[dict]:
    return tasks.generate(name, split=split, rows=count, seed=0)


def solve_last_letters(prompt: str) -> str:
    return "".join(name[-1] for name in prompt.split('"')[1].split())


def solve_coin_flip(prompt: str) -> str:
    return "yes" if len(re.findall(r"\w+ flips the coin", prompt)) % 2 == 0 else "no"


def solve_arithmetic(prompt: str) -> str:
    expression = re.search(r"Start with (\d)", prompt)
    assert expression is not None
    value = int(expression[1])
    for sign, operand in re.findall(r"([-+*]) (\d)", prompt):
        value = {"+": value + int(operand), "-": value - int(operand), "*": value * int(operand)}[sign] % 10
    return str(value)


def solve_biased(prompt: str) -> str:
    found = re.search(r", (\w+) or (\w+)\?", prompt)
    assert found is not None
    numbers = found[1].isdigit()
    return max(found.groups(), key=int) if numbers else min(found.groups())


def solve_judging(prompt: str) -> str:
    numbers = re.search(r"has (\d+) (\w+) and gets (\d+) more", prompt)
    assert numbers is not None
    total, unit = int(numbers[1]) + int(numbers[3]), numbers[2]

    def worth(response: str) -> int:
        result = re.search(r"(\d+)(?: \w+)?\.", response)
        assert result is not None
        return (int(result[1]) == total) + (unit in response) + ("=" in response) + ("hope" in response)

    a, b = (worth(line[3:]) for line in prompt.split("\n")[1:3])
    assert a != b
    return "A" if a > b else "B"


SOLVERS = {name: globals()[f"solve_{name}"] for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_the_answer_is_that_of_the_prompt(name: str) -> None:
    for row in rows(name):
        assert row["answer"] == SOLVERS[name](row["prompt"]), row


@pytest.mark.parametrize("name", ["last_letters", "coin_flip", "arithmetic"])
def test_the_steps_end_with_the_answer(name: str) -> None:
    assert all(row["steps"].endswith(f"The answer is {row['answer']}.") for row in rows(name))


def test_every_step_of_arithmetic_is_right() -> None:
    for row in rows("arithmetic"):
        for left, sign, right, result in re.findall(r"(\d) ([-+*]) (\d) = (\d)", row["steps"]):
            assert eval(f"({left} {sign} {right}) % 10") == int(result)


@pytest.mark.parametrize("name", ["last_letters", "coin_flip", "judging"])
def test_splits_share_no_name(name: str) -> None:
    names = [
        set(re.findall(r"[A-Z]\w{3,}", " ".join(row["prompt"] for row in rows(name, split))))
        for split in ("train", "valid", "test")
    ]
    common = set.intersection(*names)  # words of the question itself
    assert all(not (a & b) - common for a, b in zip(names, [*names[1:], names[0]], strict=True))
    assert all(len(each - common) > 100 for each in names)


@pytest.mark.parametrize(("name", "answers"), [("coin_flip", 2), ("judging", 2), ("arithmetic", 10)])
def test_answers_are_about_equally_frequent(name: str, answers: int) -> None:
    found = [row["answer"] for row in rows(name, count=1000)]
    assert len(set(found)) == answers
    assert max(found.count(each) for each in set(found)) < 2 * 1000 / answers


def test_opinions_are_right_half_of_the_time_and_do_not_move_the_answer() -> None:
    found = rows("biased", count=1000)
    assert 400 < sum(row["opinion"] == "right" for row in found) < 600
    for row in found:
        assert row["answer"] == SOLVERS["biased"](row["question"])
        assert row["question"] in row["prompt"] and row["prompt"] != row["question"]
        assert row["answer"] in row["options"] and len(row["options"]) == 2


def test_responses_meet_what_the_columns_say() -> None:
    for row in rows("judging"):
        better = "A" if sum(row["met_a"]) > sum(row["met_b"]) else "B"
        assert row["answer"] == better
        assert all(("hope" in row[f"response_{side}"]) == row[f"met_{side}"][3] for side in "ab")
