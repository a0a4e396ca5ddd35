"""Generated tasks: the right answer, splits that share no prompt, the same rows everywhere."""

import pytest

from minidist.data import tasks
from minidist.errors import DataError

NAMES = pytest.mark.parametrize("name", sorted(tasks.TASKS))
SOLVE = {
    "sort": lambda text: "".join(sorted(text)),
    "reverse": lambda text: text[::-1],
    "addition": lambda text: str(sum(int(part) for part in text.split("+"))),
}


@NAMES
def test_answers_are_right_and_in_the_alphabet(name: str) -> None:
    alphabet = tasks.find(name).alphabet
    for row in tasks.generate(name, split="train", rows=100, seed=0):
        if name in SOLVE:
            assert row["answer"] == SOLVE[name](row["prompt"][:-1])
        assert set(row["prompt"] + row["answer"]) <= set(alphabet)


@NAMES
def test_splits_share_no_prompt(name: str) -> None:
    prompts = [
        {row["prompt"] for seed in range(3) for row in tasks.generate(name, split=split, rows=300, seed=seed)}
        for split in ("train", "valid", "test")
    ]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]


@NAMES
def test_rows_are_different_and_a_function_of_the_arguments(name: str) -> None:
    rows = tasks.generate(name, split="train", rows=200, seed=1)
    assert len({row["prompt"] for row in rows}) == 200
    assert rows == tasks.generate(name, split="train", rows=200, seed=1)
    assert rows[:50] == tasks.generate(name, split="train", rows=50, seed=1)
    assert rows != tasks.generate(name, split="train", rows=200, seed=2)


def test_rows_are_the_same_on_every_machine() -> None:
    first = tasks.generate("addition", split="test", rows=1, seed=0)
    assert first == [{"prompt": "387+499=", "answer": "886"}]


@pytest.mark.parametrize(("written", "right"), [("12", True), (" 12\n", True), ("1 2", False), ("123", False), ("", False)])
def test_grade(written: str, right: bool) -> None:
    assert tasks.grade(written, "12") is right


def test_refusals_name_what_there_is() -> None:
    with pytest.raises(DataError, match="no generated task is named 'srot'; the tasks are addition, arithmetic, biased, "):
        tasks.generate("srot", split="train", rows=1, seed=0)
    with pytest.raises(DataError, match="splits test, train, valid, not 'dev'"):
        tasks.generate("sort", split="dev", rows=1, seed=0)


def test_more_rows_than_problems_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        tasks.TASKS, "coin", tasks.Task("01=", lambda rng, _: {"prompt": f"{rng.randrange(40)}=", "answer": "0"})
    )
    with pytest.raises(DataError, match=r"too few different train problems for 100 rows; ask for [0-9]+$"):
        tasks.generate("coin", split="train", rows=100, seed=0)


def test_more_rows_than_anybody_waits_for_are_refused() -> None:
    with pytest.raises(DataError, match="asked for 1,000,000,000,000 rows"):
        tasks.generate("sort", split="train", rows=10**12, seed=0)
