"""The processes that share one model. tests/integration/test_ranks.py runs several."""

import numpy as np

from minidist.learners.group import OneProcess


def test_one_process_is_the_first_of_one() -> None:
    assert (OneProcess().rank, OneProcess().size) == (0, 1)


def test_the_largest_values_of_one_process_are_its_own() -> None:
    assert OneProcess().largest([3, 1, 2]) == [3, 1, 2]


def test_the_totals_of_one_process_are_its_own() -> None:
    values = np.array([0.5, 1.5])
    assert OneProcess().total(values) is values


def test_the_peaks_of_one_process_are_its_own() -> None:
    values = np.array([0.5, 1.5])
    assert OneProcess().peak(values) is values
