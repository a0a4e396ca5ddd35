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
def without(*modules: str) -> Iterator[None]:
    """What is imported inside takes these modules for missing, except those that this process has imported already."""
    hidden: list[str] = [module for module in modules if module not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # pyright: ignore[reportArgumentType] - Python's own mark of a missing module
    try:
        yield
    finally:
        for module in hidden:
            del sys.modules[module]


def _missing() -> bool:
    return False
