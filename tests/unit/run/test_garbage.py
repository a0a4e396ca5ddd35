"""Garbage collection rests inside `no_collection`, and goes on afterwards."""

import gc

import pytest

from minidist.run.garbage import no_collection


def test_nothing_is_collected_inside_and_the_collector_is_as_before_afterwards() -> None:
    assert gc.isenabled()
    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="inside"), no_collection():
        raise RuntimeError("inside")
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
