"""Garbage collection while modules are imported."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Garbage is not collected inside, nor looked for later among the objects that were made inside.

    torch, transformers and vLLM make a million objects that live as long as the process, and every collection looks at all of
    them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.unregister(gc.unfreeze)
        atexit.register(gc.unfreeze)  # libraries complain at the end of what was never collected
        if enabled:
            gc.enable()
