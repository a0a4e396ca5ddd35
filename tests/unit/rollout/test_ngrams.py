"""Blocking of repeated n-grams."""

import doctest

import minidist.rollout.ngrams as module


def test_docstring_examples() -> None:
    done = doctest.testmod(module)
    assert done.attempted > 0 and done.failed == 0
