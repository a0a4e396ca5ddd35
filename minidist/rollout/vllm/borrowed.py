"""Families that vLLM runs through the classes of transformers, which it changes for the whole process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHANGED = ("__init__", "__call__")


@contextmanager
def classes_unchanged(model: Path, *, trust_remote_code: bool) -> Iterator[None]:
    """Undo what vLLM does inside to the class of the model's family, so that transformers can load it in the same process.

    vLLM wraps the class to compile it, and the wrapped class refuses to be made outside of vLLM. An engine that runs without
    compilation, as on a CPU, does not use the wrapper.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    mapping: Any = AutoModel._model_mapping
    family = mapping.get(type(config), None)
    # Some families share one configuration among several classes.
    found = family if isinstance(family, tuple) else (family,) if family else ()
    kept = [(each, each.__bases__, {name: vars(each).get(name) for name in _CHANGED}) for each in found]
    try:
        yield
    finally:
        for each, bases, methods in kept:
            if each.__bases__ != bases:
                _restore(each, bases, methods)


def _restore(changed: type, bases: tuple[type, ...], methods: dict[str, Any]) -> None:
    changed.__bases__ = bases
    for name, method in methods.items():
        if method is not None:
            setattr(changed, name, method)
        elif name in vars(changed):  # the class had inherited it
            delattr(changed, name)
