"""Files that survive a crash: written whole, forced to the disk, checked by their sums, locked by one process at a time; and
read with suspicion, since others may have changed them."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from minidist.errors import DiskFullError, RunDirectoryError, UserError
from minidist.text import shown

T = TypeVar("T")

LOCK = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_json(file: Path, values: Any, *, indent: int | None = 2) -> None:
    """Write values as JSON, whole or not at all, whenever the process ends."""
    write_text(file, json.dumps(values, indent=indent) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text, whole or not at all. Raises DiskFullError."""
    partial = file.with_suffix(".partial")
    with writing(file):
        partial.unlink(missing_ok=True)
        with partial.open("x", encoding="utf-8") as stream:  # a new file: no link is followed
            stream.write(text)
        rename(partial, file)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a full disk, found while `path` is written, as a DiskFullError that names it."""
    try:
        yield
    except Exception as error:
        if (reason := full_disk(error)) is None:
            raise
        raise DiskFullError(
            f"{path} could not be written: {reason}; free space there, such as older runs or their checkpoints, or lower "
            "run.checkpoints_kept, and give the same command again: an unfinished run goes on from its last checkpoint"
        ) from error


def full_disk(error: BaseException) -> str | None:
    """The system's words where an error says that a disk is full, a quota used up or a file too large; else None."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _FULL else None
    # Libraries that are not written in Python, such as safetensors, give the system's words alone.
    return next((os.strerror(number) for number in _FULL if os.strerror(number) in str(error)), None)


def read_record(file: Path, shape: type[T], remedy: str, error: type[UserError] = RunDirectoryError) -> T:
    """The values in a JSON file, if they have this shape. Raises `error`, with the file, what was found and the remedy."""
    try:
        if not file.is_file():  # a pipe or a device would never end
            raise error(f"{file} is {'not a file' if file.exists() else 'missing'}; {remedy}")
        values = json.loads(file.read_text(encoding="utf-8"))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not JSON, or nested too deep"
        raise error(f"{file} cannot be read ({reason}); {remedy}") from None
    return shaped(values, shape, f"{file} is of another shape", remedy, error)


def shaped(values: Any, shape: type[T], where: str, remedy: str, error: type[UserError] = RunDirectoryError) -> T:
    """The values, if they have this shape. Raises `error`."""
    if _deep(values):
        raise error(f"{where}: nested too deep; {remedy}")
    try:
        return TypeAdapter(shape).validate_python(values)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = "".join(f"{part}: " for part in first["loc"][:1])
        raise error(f"{where} ({field}{first['msg']}); {remedy}") from None


def _deep(values: Any, limit: int = 100) -> bool:
    """Whether lists and mappings are nested deeper than `limit`; functions that recurse fail on such values."""
    level = [values]
    for _ in range(limit):
        nested = [each for each in level if isinstance(each, list | dict)]
        level = [child for each in nested for child in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return False
    return True


def open_tensors(file: Path, remedy: str, error: type[UserError], framework: str = "np") -> Any:
    """A safetensors file, opened by the library. Raises `error`, with the file, the fault and the remedy."""
    from safetensors import SafetensorError, safe_open

    try:
        if not file.is_file():  # a pipe or a device would never end
            raise error(f"{file} is {'not a file' if file.exists() else 'missing'}; {remedy}")
        return safe_open(file, framework=framework)
    except (OSError, SafetensorError) as problem:
        if isinstance(problem, UserError):
            raise
        raise error(f"{file} is not a whole file of tensors ({shown(str(problem))}); {remedy}") from None


def remove(path: Path) -> None:
    """Remove a directory with all that it holds, or a file, or a symbolic link without what it names."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


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
    try:
        if not file.is_file():
            return "is missing"
        return None if sha256(file) == expected else "has changed"
    except (OSError, ValueError):
        return "cannot be read"


def lock(directory: Path, *, use: str, setting: str) -> TextIO:
    """Lock a directory until the returned file is closed, or this process ends in any way; make the directory if need be.

    Raises RunDirectoryError when another process holds the lock: `use` says what that process does (`running in`), `setting`
    what the user may change instead of waiting.
    """
    file = _open_lock(directory, setting)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunDirectoryError(f"another process is {use} {directory}; wait for it to end, or set another {setting}") from None
    return file


def _open_lock(directory: Path, setting: str) -> TextIO:
    """The lock file, neither followed where it is a symbolic link, nor changed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(directory / LOCK, flags, 0o644), "r+")
    except OSError as error:
        if full_disk(error):
            raise
        reason = f"{LOCK} is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise RunDirectoryError(f"{setting} {directory} cannot be used: {reason}; set another {setting}") from None
