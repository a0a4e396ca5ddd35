"""Two GPUs: an engine whose model is split over them. A module of its own, since a process has one cluster at a time."""

import pytest

from tests.integration.conftest import Stack
from tests.support import on_device

pytestmark = [pytest.mark.gpu2, pytest.mark.timeout(600)]


def test_a_split_engine_takes_new_weights(split_engine: Stack) -> None:
    on_device.a_split_engine_takes_new_weights(split_engine, split_engine.engine, split_engine.learner)


def test_a_learner_on_the_cpu_sends_to_every_part_over_gloo(split_engine: Stack) -> None:
    on_device.a_channel_brings_the_bits_of_the_object_store(split_engine, [split_engine.engine], processes=2)
