"""`python -m tests.support.observed FILE VERB CONFIG …`: minidist, which adds a line to FILE for each event of its run.

Each line is one JSON object with the time `at` (seconds of `time.time()`) and the `event`: `role` (its `name` and the `pid` of
its process, whenever one starts), `begin` and `end` of a phase of the loop or of a checkpoint (`name`), or `step` (a step's
figures are recorded).
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def observe(file: Path) -> None:
    """From now on, write the events of this process."""
    from minidist.cluster.remote import Remote
    from minidist.run.checkpoint import Checkpoints
    from minidist.run.tracking import Clock, Recorder

    def write(event: str, **facts: Any) -> None:
        with file.open("a") as lines:
            lines.write(json.dumps({"at": time.time(), "event": event, **facts}) + "\n")

    start, span, step, checkpoint = Remote.start, Clock.span, Recorder.step, Checkpoints.write

    async def started(self: Any, make: Any, **arguments: Any) -> None:
        write("role", name=self.name, pid=await self.ask(os.getpid))
        await start(self, make, **arguments)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        write("begin", name=name)
        try:
            yield
        finally:
            write("end", name=name)

    @contextmanager
    def spanned(self: Clock, name: str) -> Iterator[None]:
        with phase(name), span(self, name):
            yield

    def stepped(self: Recorder, number: int, metrics: dict[str, float]) -> None:
        step(self, number, metrics)
        write("step", number=number)

    async def written(self: Checkpoints, *arguments: Any) -> None:
        with phase("checkpoint"):
            await checkpoint(self, *arguments)

    Remote.start, Clock.span, Recorder.step, Checkpoints.write = started, spanned, stepped, written  # type: ignore[method-assign]


if __name__ == "__main__":
    events = Path(sys.argv.pop(1))
    from minidist.cli import main

    observe(events)
    main()
