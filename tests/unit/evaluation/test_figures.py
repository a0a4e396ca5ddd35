"""Figures with their error and spread, and how records hold them."""

import json

import numpy as np
import pytest

from minidist.evaluation.figures import Figure, curves, from_record, one_line, over_seeds, to_record

FIGURES = {"a": Figure(0.5, error=0.125, spread=0.25), "b": Figure(2.0, curve={16: 1.0, 20: 2.0})}


def test_samples_have_a_standard_error_and_repeats_a_standard_deviation() -> None:
    values = np.array([1.0, 2.0, 6.0])
    assert Figure.of_samples(values) == Figure(3.0, error=pytest.approx(7**0.5 / 3**0.5))
    assert Figure.of_repeats([1.0, 2.0, 6.0]) == Figure(3.0, spread=pytest.approx(7**0.5))
    assert Figure.of_samples(values[:1]) == Figure.of_repeats([1.0]) == Figure(1.0)


def test_a_record_has_the_mean_the_spread_and_the_error() -> None:
    record = to_record(FIGURES)
    assert list(record.items()) == [("a", 0.5), ("a_sd", 0.25), ("a_se", 0.125), ("b", 2.0)]
    assert curves(FIGURES) == {"b_curve": {"16": 1.0, "20": 2.0}}


def test_a_record_is_read_back_without_curves_and_other_entries() -> None:
    record = {"objective": "x", "seed": None, "steps": 3, **to_record(FIGURES), **curves(FIGURES)}
    assert from_record(json.loads(json.dumps(record))) == {"a": FIGURES["a"], "b": Figure(2.0)}


def test_over_seeds_the_spread_is_between_seeds_and_the_error_within_one() -> None:
    rounds = [{"a": Figure(1.0, error=0.5, curve={16: 4.0})}, {"a": Figure(3.0, error=0.25, curve={16: 5.0})}]
    assert over_seeds(rounds) == {"a": Figure(2.0, error=0.375, spread=pytest.approx(2**0.5), curve={16: 4.5})}
    assert over_seeds(rounds[:1]) == rounds[0]


def test_the_log_shows_means_alone() -> None:
    assert one_line(FIGURES) == "a 0.5, b 2"
