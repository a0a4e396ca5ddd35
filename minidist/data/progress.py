"""A live line while many rows are read, where there is a terminal."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_PATIENCE_S = 2.0  # reading shorter than this shows nothing


def counted(items: Iterable[Item], name: str) -> Iterator[Item]:
    """The items; how many have been read so far, and how many a second, is shown after some seconds."""
    started = time.monotonic()
    shown = started + _PATIENCE_S
    terminal = sys.stderr.isatty()
    printed = False
    for count, item in enumerate(items, start=1):
        if terminal and (now := time.monotonic()) > shown:
            print(
                f"\rreading {name}: {count:,} rows, {count / (now - started):,.0f} a second ",
                end="",
                file=sys.stderr,
                flush=True,
            )
            shown, printed = now + 0.5, True
        yield item
    if printed:
        print(file=sys.stderr)
