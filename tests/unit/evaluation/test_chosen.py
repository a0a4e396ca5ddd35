"""The value that is best on validation prompts."""

import pytest

from minidist.evaluation.chosen import choice_lines, choose


def row(**figures: float) -> dict[str, float]:
    return {"seconds": 1.0, **figures}


def test_the_best_value_is_chosen_and_the_smaller_of_equals() -> None:
    trials = {0.1: [row(reverse_kl=0.5)], 0.2: [row(reverse_kl=0.3)], 0.4: [row(reverse_kl=0.3)]}
    found = choose("lr", "reverse_kl", trials)
    assert found.value == 0.2 and found.border is None
    assert found.record()["validation"] == {"0.1": {"reverse_kl": 0.5}, "0.2": {"reverse_kl": 0.3}, "0.4": {"reverse_kl": 0.3}}


def test_accuracy_is_better_when_higher_and_figures_are_means_over_seeds() -> None:
    trials = {1.0: [row(accuracy=0.9), row(accuracy=0.1)], 2.0: [row(accuracy=0.6), row(accuracy=0.6)]}
    assert choose("lr", "accuracy", trials).value == 2
    assert choose("lr", "accuracy", trials).figures[1] == {"accuracy": pytest.approx(0.5)}


def test_values_that_failed_are_not_chosen() -> None:
    failed = {"failed": "the loss is nan"}
    found = choose("lr", "reverse_kl", {1: [row(reverse_kl=0.5)], 2: [row(reverse_kl=0.1), failed]})
    assert found.value == 1 and found.figures[2] is None and found.record()["validation"]["2"] == "failed"
    none_left = choose("lr", "reverse_kl", {1: [failed], 2: [failed]})
    assert none_left.value == 1
    assert any("x: the run failed with every lr" in line for line in choice_lines({"x": none_left}))


def test_the_page_shows_every_value_and_says_where_a_border_was_chosen() -> None:
    middle = choose("lr", "reverse_kl", {1: [row(reverse_kl=0.5)], 2: [row(reverse_kl=0.25)], 3: [row(reverse_kl=0.75)]})
    end = choose("lr", "reverse_kl", {1: [row(reverse_kl=0.5)], 2: [row(reverse_kl=0.25)], 3: [row(reverse_kl=0.125)]})
    lines = choice_lines({"a": middle, "b": end})
    assert lines[0] == "## lr chosen by reverse KL on the validation prompts"
    assert "| a | 0.500 | **0.250** | 0.750 |" in lines and "| b | 0.500 | 0.250 | **0.125** |" in lines
    assert [line for line in lines if "of the list" in line] == [
        "b: lr 3 is the largest of the list; a larger one may be better."
    ]
    assert choice_lines({}) == []
