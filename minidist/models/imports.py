"""What transformers and vLLM import for functions that minidist never calls."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
    loaded: dict[str, Any] = sys.modules
    hidden = [module for module in modules if module not in loaded]
    loaded.update(dict.fromkeys(hidden))  # Python's own mark of a missing module
    try:
        yield
    finally:
        for module in hidden:
            del loaded[module]


def _missing() -> bool:
    return False
