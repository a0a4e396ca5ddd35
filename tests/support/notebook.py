"""A program as a notebook's kernel is: an event loop runs already, and the main thread is interrupted by SIGINT."""

import asyncio
import json
import sys
from pathlib import Path


async def cell(tree: dict) -> None:
    """A cell of a notebook, which the kernel runs inside its loop."""
    import minidist

    try:
        opened = minidist.run(tree)
    except KeyboardInterrupt:
        print("KeyboardInterrupt was raised", flush=True)
        return
    print("opened", opened.directory, len(opened.metrics), flush=True)


if __name__ == "__main__":
    asyncio.run(cell(json.loads(Path(sys.argv[1]).read_text())))
