"""minidist in Python and in notebooks: start a run, and open what it left."""

from minidist.notebook.opened import OpenedRun, open_run
from minidist.notebook.start import run

__all__ = ["OpenedRun", "open_run", "run"]
