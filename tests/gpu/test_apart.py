"""Two GPUs: an engine on one, a learner on the other. A module of its own, since a process has one cluster at a time."""

import pytest

from tests.integration.conftest import Stack
from tests.support import on_device

pytestmark = [pytest.mark.gpu2, pytest.mark.timeout(600)]


def test_new_weights_come_over_nccl(apart: Stack) -> None:
    assert apart.transfer == "nccl" or not apart.on_gpu
    on_device.a_channel_brings_the_bits_of_the_object_store(apart, [apart.engine])
