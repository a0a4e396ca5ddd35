"""Means of divergences with their errors, and exposure bias, against naive computations."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minidist.evaluation import divergence
from minidist.types import Measures


def accumulated(values: list[list[float]]) -> Measures:
    """Forward divergences of rows, token by token."""
    row = np.repeat(np.arange(len(values)), [len(each) for each in values]).astype(np.int32)
    flat = np.concatenate(values)
    return Measures(row, -flat, -flat, 9 * flat, flat)


def measures(seed: int = 0, rows: int = 40) -> tuple[Measures, list[np.ndarray]]:
    """Divergences of rows of different lengths, and the same row by row."""
    rng = np.random.default_rng(seed)
    parts = [rng.exponential(size=rng.integers(1, 9)) + rng.exponential() for _ in range(rows)]
    index = np.repeat(np.arange(rows), [len(part) for part in parts])
    values = np.concatenate(parts)
    return Measures(index.astype(np.int32), -values, -values, values, 2 * values), parts


def test_divergence_means_and_errors() -> None:
    table, parts = measures()
    got = divergence.reverse(table)
    count, tokens = len(parts), sum(len(part) for part in parts)
    sums = [sum(part) for part in parts]
    mean, per_sequence = sum(sums) / tokens, sum(sums) / count
    token_mean, sequence_mean = got["reverse_kl"], got["reverse_kl_per_sequence"]
    assert token_mean.mean == pytest.approx(mean)
    assert sequence_mean.mean == pytest.approx(per_sequence)
    # Ratio estimator (Cochran, Sampling Techniques, eq. 6.9): variance of the residuals over the squared mean length.
    residual = sum((total - mean * len(part)) ** 2 for total, part in zip(sums, parts, strict=True)) / (count - 1)
    assert token_mean.error == pytest.approx(math.sqrt(residual / count) / (tokens / count))
    spread = sum((total - per_sequence) ** 2 for total in sums) / (count - 1)
    assert sequence_mean.error == pytest.approx(math.sqrt(spread / count))


def test_error_of_the_token_mean_is_that_of_the_jackknife() -> None:
    table, parts = measures(rows=300)
    whole, tokens = sum(part.sum() for part in parts), sum(len(part) for part in parts)
    without = [(whole - part.sum()) / (tokens - len(part)) for part in parts]
    jackknife = math.sqrt((len(parts) - 1) * np.var(without))
    assert divergence.reverse(table)["reverse_kl"].error == pytest.approx(jackknife, rel=0.02)


def test_forward_takes_the_forward_column() -> None:
    table, _ = measures()
    forward, reverse = divergence.forward(table), divergence.reverse(table)
    assert set(forward) == {"forward_kl", "forward_kl_per_sequence"}
    assert forward["forward_kl"].mean == pytest.approx(2 * reverse["reverse_kl"].mean)


def test_the_mean_of_one_sequence_has_no_error() -> None:
    table, parts = measures(rows=1)
    got = divergence.reverse(table)
    assert got["reverse_kl"].mean == pytest.approx(parts[0].mean())
    assert all(figure.error is None for figure in got.values())


def test_exposure_bias_by_hand() -> None:
    student, teacher = accumulated([[1.0] * 20, [3.0]]), accumulated([[1.0] * 20, [1.0] * 20])
    got = divergence.exposure_bias(student, teacher, 20)["exposure_bias"]
    # At 16 the first row of the student has summed 16, the second its one token of 3; the teacher's rows have summed 16.
    assert got.curve[16] == pytest.approx(100 * ((16 + 3) / 2 - 16) / 16)
    assert got.curve[20] == got.mean == pytest.approx(100 * ((20 + 3) / 2 - 20) / 20)
    assert set(got.curve) == {16, 20}
    first = divergence.exposure_bias(accumulated([[6.0, 0.0]]), accumulated([[2.0, 9.0]]), 1)
    assert first["exposure_bias"].curve[1] == pytest.approx(200), "the first token of the answer alone"


def test_exposure_bias_against_the_naive_sums() -> None:
    rng = np.random.default_rng(1)
    lines = [[rng.exponential(size=rng.integers(1, 60)).tolist() for _ in range(30)] for _ in range(2)]
    got = divergence.exposure_bias(accumulated(lines[0]), accumulated(lines[1]), 50)["exposure_bias"]
    assert list(got.curve) == [16, 32, 48, 50]
    for length, value in got.curve.items():
        student, teacher = (sum(sum(line[:length]) for line in each) / 30 for each in lines)
        assert value == pytest.approx(100 * (student - teacher) / teacher)


def test_exposure_bias_of_the_same_samples_is_zero() -> None:
    table, _ = measures()
    zero = divergence.exposure_bias(table, table, 40)["exposure_bias"]
    assert {zero.mean, *zero.curve.values()} == {0.0}


def test_exposure_bias_of_the_teacher_itself_is_zero() -> None:
    zeros, rounding = accumulated([[0.0] * 5]), accumulated([[3e-8, -1e-8], [5e-8]])
    for student in (zeros, rounding):
        zero = divergence.exposure_bias(student, zeros, 5)["exposure_bias"]
        assert {zero.mean, *zero.curve.values()} == {0.0}
    assert math.isfinite(divergence.exposure_bias(accumulated([[1.0]]), zeros, 5)["exposure_bias"].mean)


def test_exposure_bias_needs_exact_divergences() -> None:
    zeros = accumulated([[0.0] * 5])
    assert divergence.exposure_bias(replace(zeros, forward_kl=None), zeros, 5) == {}
