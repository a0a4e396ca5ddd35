"""What transformers and vLLM import for functions that minidist never calls."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def import_less() -> None:
    """Have transformers take scikit-learn and SciPy for missing, before its models are imported in this process.

    It imports them for speculative decoding and for losses of object detection; that costs a second of a core in each process.
    Whoever imports these packages elsewhere finds them.
    """
    import transformers.utils

    for package in ("sklearn", "scipy"):
        setattr(transformers.utils, f"is_{package}_available", _missing)


@contextmanager
def without(package: str) -> Iterator[None]:
    """What is imported inside takes the package for missing; if this process has imported it already, it is found."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # pyright: ignore[reportArgumentType] - Python's own mark of a missing module
    try:
        yield
    finally:
        del sys.modules[package]


def _missing() -> bool:
    return False
