"""Garbage collection rests inside `no_collection`, and goes on afterwards."""

import gc
import weakref

import pytest

from minidist.run.garbage import no_collection, nothing_old_collected


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


def test_a_collection_looks_only_at_what_is_new() -> None:
    class Cyclic:
        def __init__(self) -> None:
            self.itself = self

    def made() -> "weakref.ref[Cyclic]":
        return weakref.ref(Cyclic())

    gc.disable()
    try:
        old = made()
        with nothing_old_collected():
            new = made()
            gc.collect()
            assert (new(), old()) == (None, old()) and old() is not None
        gc.collect()
        assert old() is None
    finally:
        gc.enable()
