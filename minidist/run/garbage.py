"""Garbage collection while modules are imported."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Garbage is not collected inside.

    torch, transformers and vLLM make a million objects as they are imported, all of which stay, and every collection looks at
    each of them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # what was made inside counts as old: the next collection does not begin with it
        if enabled:
            gc.enable()


@contextmanager
def nothing_old_collected() -> Iterator[None]:
    """Collections inside, also those that a library asks for, look at none of the objects that are there already."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
