"""What travels between the roles."""

import doctest

import pytest

from minidist import types
from minidist.types import Payload


@pytest.mark.parametrize("payload", Payload)
def test_a_payload_serves_its_own_needs_and_those_of_poorer_payloads(payload: Payload) -> None:
    order = ["sampled", "top_k", "hidden"]
    assert [payload.serves(needed) for needed in order] == [order.index(needed) <= order.index(payload) for needed in order]


def test_the_worked_examples_hold() -> None:
    done = doctest.testmod(types)
    assert done.attempted and not done.failed
