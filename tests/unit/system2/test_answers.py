"""Where the final answer stands in a reply, and when two answers are the same."""

import pytest

from minidist.system2.answers import NORMALISERS, final_answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("2 + 3 = 5. The answer is 5.", "5"),
        ("Answer: blue\n", "blue"),
        ("so\n#### 1,200", "1,200"),
        (r"thus \boxed{3} or rather \boxed{4}", "4"),
        ("The answer is 3. No, the answer is 4.", "4"),
        ("first line\n\nlast line.\n", "last line"),
        ("The answer is\nyes", "yes"),
        ("The answer is ", ""),
        ("", ""),
        ("The answer is 3.5.", "3.5"),
    ],
)
def test_the_final_answer_stands_after_the_last_mark(reply: str, answer: str) -> None:
    assert final_answer(reply) == answer


@pytest.mark.parametrize(
    ("kind", "same", "other"),
    [
        ("number", ["1,200.50", "1200.5", "$1200.50 in all", "+1200.500"], "1200.05"),
        ("number", ["0", "-0", "0.0", "zero is 0"], "10"),
        ("number", ["0.5", "1/2", ".5 is 0.50", ".5"], "0.25"),
        ("number", ["-5", "-$5", "$-5", "\N{MINUS SIGN}5", "it is -5.00"], "5"),
        ("number", ["3", "x = 5-3", "8 - 5 = 3", "(8)-3"], "-3"),
        ("number", ["1.5", "1 1/2", "3/2"], "0.5"),
        ("number", ["1800", "1.8e3", "1,800", "€1,800.", "**1800**", r"\$1800"], "1.8"),
        ("text", ["The Blue Whale.", "blue whale", '"a blue  whale"'], "whale"),
        ("yes_no", ["Yes, it is.", "yes", "YES"], "no"),
        ("option", ["(B)", "B.", "the option is B", "A is wrong, so B"], "A"),
        ("exact", [" a b", "a b\n"], "a  b"),
    ],
)
def test_forms_of_one_answer_are_the_same(kind: str, same: list[str], other: str) -> None:
    normalise = NORMALISERS[kind]
    assert len({normalise(each) for each in same}) == 1
    assert normalise(other) != normalise(same[0])


@pytest.mark.parametrize(
    ("kind", "reply"), [("number", "none"), ("yes_no", "perhaps nothing"), ("option", "all"), ("text", "...")]
)
def test_what_is_no_answer_has_an_empty_form(kind: str, reply: str) -> None:
    assert NORMALISERS[kind](reply) == ""


@pytest.mark.parametrize("reply", ["1/0", "9" * 6000, "1e999999999", "1/" + "9" * 6000, "9" * 6000 + " 1/2"])
def test_numbers_that_no_machine_holds_are_read_all_the_same(reply: str) -> None:
    assert 0 < len(NORMALISERS["number"](reply)) <= 7000


def test_yes_within_a_word_is_no_answer() -> None:
    assert NORMALISERS["yes_no"]("yesterday I know") == ""
