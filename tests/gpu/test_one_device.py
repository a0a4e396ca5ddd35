"""Three roles that share one GPU, in bfloat16: the equalities of tests/integration."""

import pytest

from tests.integration.conftest import Stack
from tests.support import on_device

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def test_engine_and_learner_agree_after_each_update(one_device: Stack) -> None:
    on_device.engine_and_learner_agree_after_each_update(one_device)


def test_rows_of_one_micro_batch_are_rows_alone(one_device: Stack) -> None:
    on_device.rows_of_one_micro_batch_are_rows_alone(one_device)


def test_mixed_sequences_are_whole(one_device: Stack) -> None:
    on_device.mixed_sequences_are_whole(one_device, one_device.teacher)


def test_an_engine_reads_new_weights_in_the_learners_memory(one_device: Stack) -> None:
    on_device.a_channel_brings_the_bits_of_the_object_store(one_device, [one_device.engine])
