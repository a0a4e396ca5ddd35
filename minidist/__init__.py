"""minidist: on-policy distillation of language models. Importing it loads nothing heavy.

`minidist.run(config)` runs a configuration, `minidist.open_run(path)` opens what a run wrote (`minidist.notebook`).
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from minidist.notebook import OpenedRun as OpenedRun
    from minidist.notebook import open_run as open_run
    from minidist.notebook import run as run


class _RunPackage(ModuleType):
    """The package `minidist.run`, which is called as the function of that name in `minidist.notebook`."""

    def __call__(self, config: Any, /, **overrides: Any) -> "OpenedRun":
        """See `minidist.notebook.run`."""
        from minidist.notebook import run

        return run(config, **overrides)


importlib.import_module("minidist.run")
sys.modules["minidist.run"].__class__ = _RunPackage


def __getattr__(name: str) -> Any:
    """`open_run` and `OpenedRun`, imported when they are first asked for."""
    if name in ("open_run", "OpenedRun"):
        return getattr(importlib.import_module("minidist.notebook"), name)
    raise AttributeError(f"module 'minidist' has no attribute {name!r}")
