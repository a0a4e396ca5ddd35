"""What a run is starting, and for how long: one live line on a terminal, one line of the log for each role that is ready."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from minidist.run.tracking import console as stderr
from minidist.run.tracking import log


class Starts:
    """Shows the roles that are starting and those that are ready, in the order of their starts."""

    def __init__(self, console: Console = stderr) -> None:
        self._console = console
        self._since: dict[str, float] = {}
        self._pending: Counter[str] = Counter()
        self._took: dict[str, float] = {}
        self._live: Live | None = None

    @contextmanager
    def of(self, role: str) -> Iterator[None]:
        """The start of one actor of a role happens inside. The role is ready when all its actors are."""
        if not self._pending:
            self._since.clear()
            self._took.clear()
            if self._console.is_terminal:
                self._live = Live(get_renderable=self.line, console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
        self._pending[role] += 1
        self._since.setdefault(role, time.perf_counter())
        try:
            yield
            if self._pending[role] == 1:
                self._took[role] = time.perf_counter() - self._since[role]
                log.info("%s ready after %.0f s", role, self._took[role])
        finally:
            self._pending -= Counter([role])
            if not self._pending and self._live is not None:
                self._live.stop()
                self._live = None

    def line(self) -> Text:
        """Such as `rollout starting 12 s   teacher ready 9 s`."""
        now = time.perf_counter()
        parts = []
        for role, since in self._since.items():
            seconds = self._took.get(role)
            state, colour = ("starting", "yellow") if seconds is None else ("ready", "green")
            parts.append(Text(f"{role} {state} {now - since if seconds is None else seconds:.0f} s", colour))
        return Text("   ").join(parts)
