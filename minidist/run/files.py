"""Files that survive a crash: written whole, forced to the disk, checked by their sums, locked by one process at a time."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any, TextIO

from minidist.errors import RunDirectoryError

LOCK = ".lock"


def write_json(file: Path, values: Any, *, indent: int | None = 2) -> None:
    """Write values as JSON, whole or not at all, whenever the process ends."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=indent) + "\n")
    rename(partial, file)


def rename(partial: Path, path: Path) -> None:
    """Give a finished file or directory its name: first its content is forced to the disk, then the name."""
    sync(partial)
    partial.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def sha256(file: Path) -> str:
    """Hexadecimal sum of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damage(file: Path, expected: str) -> str | None:
    """How a file differs from the one whose `sha256` was `expected`; None for an intact file."""
    if not file.is_file():
        return "is missing"
    return None if sha256(file) == expected else "has changed"


def lock(directory: Path, *, use: str, setting: str) -> TextIO:
    """Lock a directory until the returned file is closed, or this process ends in any way; make the directory if need be.

    Raises RunDirectoryError when another process holds the lock: `use` says what that process does (`running in`), `setting`
    what the user may change instead of waiting.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunDirectoryError(f"another process is {use} {directory}; wait for it to end, or set another {setting}") from None
    return file
