"""Votes: the majority, its ties and its thresholds; changed inputs and the way back."""

import random

import pytest

from minidist.system2.answers import NORMALISERS
from minidist.system2.filters import PERTURBATIONS, chosen, majority, shuffled_options

EXACT = NORMALISERS["exact"]


def test_the_majority_wins() -> None:
    vote = majority(["a", "b", "a"], EXACT)
    assert vote.answer == "a" and vote.agreement == pytest.approx(2 / 3) and vote.votes == {"a": 2, "b": 1}


def test_a_tie_for_the_most_has_no_winner() -> None:
    vote = majority(["a", "b", "b", "a", "c"], EXACT)
    assert vote.answer is None and vote.agreement == pytest.approx(2 / 5)


def test_votes_are_counted_by_the_form_and_the_first_text_is_kept() -> None:
    vote = majority(["5", "4.0", "4", "$4"], NORMALISERS["number"])
    assert vote.answer == "4.0" and vote.votes == {"4": 3, "5": 1}


def test_samples_without_an_answer_lower_the_agreement() -> None:
    vote = majority(["", "4", "none"], NORMALISERS["number"])
    assert vote.answer == "4" and vote.agreement == pytest.approx(1 / 3)


def test_no_answer_at_all_has_no_winner() -> None:
    assert majority(["", " "], EXACT).answer is None


def test_votes_do_not_depend_on_the_order_of_the_samples() -> None:
    answers = ["a", "b", "a", "c", "c", "c"]
    for seed in range(20):
        mixed = random.Random(seed).sample(answers, len(answers))
        vote = majority(mixed, EXACT)
        assert (vote.answer, list(vote.votes.items())) == ("c", [("c", 3), ("a", 2), ("b", 1)])


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("The most consistent response is Response 2", "b"),
        ("response #3.", "c"),
        ("Response 1 is off; Response 3", "c"),
        ("no idea", "a"),
        ("Response 9", "a"),
    ],
)
def test_the_model_s_choice_is_read_and_else_the_first(reply: str, answer: str) -> None:
    assert chosen(reply, ["a", "b", "c"]) == answer


def test_letters_of_shuffled_options_are_mapped_back() -> None:
    options = ["red", "green", "blue", "grey"]
    for seed in range(50):
        changed = shuffled_options({"options": options}, random.Random(seed))
        assert changed.row["options"] != options and sorted(changed.row["options"]) == sorted(options)
        for place, option in enumerate(changed.row["options"]):
            letter = changed.back(f"({'ABCD'[place]})")
            assert options["ABCD".index(letter)] == option


def test_verdicts_on_swapped_responses_are_mirrored() -> None:
    changed = PERTURBATIONS["swapped_responses"].change({"response_a": "x", "response_b": "y"}, random.Random(0))
    assert (changed.row["response_a"], changed.row["response_b"]) == ("y", "x")
    assert [changed.back(each) for each in ("A", "B.", "tie")] == ["B", "A", "tie"]


def test_a_change_leaves_the_other_columns() -> None:
    row = {"prompt": "p", "options": ["1", "2"], "response_a": "x", "response_b": "y", "paraphrases": ["q"], "answer": "1"}
    for perturbation in PERTURBATIONS.values():
        changed = perturbation.change(row, random.Random(1)).row
        assert changed["answer"] == "1" and set(changed) == set(row) and changed != row
