"""Sums over a stream's loss tokens: they add up over micro-batches and ranks, and become metrics under the stream's name."""

import math

import numpy as np
import pytest
import torch

from minidist.errors import CanaryError, DivergedError
from minidist.learners.sums import StreamSums
from minidist.losses.chunked import LossTerms
from minidist.types import Array, Stream

FIGURES = ("transport/moved",)


def terms(loss: float, tokens: int, teacher: float = -2.0, moved: float = 0.0) -> LossTerms:
    return LossTerms(torch.tensor(loss), tokens, torch.tensor(-1.0), torch.tensor(teacher), torch.tensor([moved]))


def stream(name: str, tokens: int) -> Stream:
    return Stream(name, (), name, tokens)


class TwoRanks:
    """A group whose other rank has the same sums."""

    rank, size = 0, 2

    def total(self, values: Array) -> Array:
        return 2 * values

    def largest(self, values: list[int]) -> list[int]:
        return values


def test_micro_batches_add_up() -> None:
    sums = StreamSums(FIGURES) + terms(0.5, 3, moved=1.0) + terms(0.25, 1, moved=2.0)
    assert [sums[name] for name in ("loss", "student_logprob", "teacher_logprob", "tokens", "micro_batches")] == [
        0.75,
        -2.0,
        -4.0,
        4.0,
        2.0,
    ]
    assert sums["transport/moved"] == 3.0


def test_sums_are_kept_in_float64() -> None:
    sums = StreamSums(FIGURES)
    for _ in range(10):
        sums += terms(0.1, 1)
    assert sums["loss"] == pytest.approx(10 * float(np.float32(0.1)), rel=1e-15)


def test_ranks_add_up() -> None:
    sums = (StreamSums(FIGURES) + terms(0.5, 3)).over(TwoRanks())  # type: ignore[arg-type]
    assert (sums["loss"], sums["tokens"], sums["micro_batches"]) == (1.0, 6.0, 2.0)


def test_metrics_are_means_over_the_streams_tokens() -> None:
    sums = StreamSums(FIGURES) + terms(1.0, 4, moved=2.0)
    assert sums.metrics(stream("main", 4)) == {
        "main/loss_nats_per_token": 0.25,
        "main/student_logprob_nats": -0.25,
        "main/teacher_logprob_nats": -0.5,
        "transport/moved": 0.5,
    }


def test_figures_of_another_stream_begin_with_its_name() -> None:
    assert (StreamSums(FIGURES) + terms(1.0, 4, moved=2.0)).metrics(stream("gold", 4))["gold/transport/moved"] == 0.5


def test_a_stream_without_a_teacher_has_no_teacher_metric() -> None:
    metrics = (StreamSums(FIGURES) + terms(1.0, 4, teacher=math.nan)).metrics(stream("main", 4))
    assert "main/teacher_logprob_nats" not in metrics


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(loss: float) -> None:
    with pytest.raises(DivergedError, match=r"the loss of stream main is (nan|inf); the optimizer did not move"):
        (StreamSums(FIGURES) + terms(loss, 4)).check(stream("main", 4))


def test_labels_counted_but_not_trained_are_refused() -> None:
    with pytest.raises(CanaryError, match="stream main: 5 labels were counted but 4 trained"):
        (StreamSums(FIGURES) + terms(1.0, 4)).check(stream("main", 5))


def test_sums_wait_for_no_device() -> None:
    """Numbers on the meta device cannot be read: a step on a GPU would wait for every micro-batch."""
    numbers = [torch.zeros((), device="meta") for _ in range(3)]
    more = LossTerms(numbers[0], 3, *numbers[1:], torch.zeros(1, device="meta"))
    StreamSums(FIGURES) + more + more
