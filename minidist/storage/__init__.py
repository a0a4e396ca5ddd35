"""Files at fsspec addresses, such as s3://bucket/data.jsonl: models and data, copied once to a cache of this machine."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from minidist.errors import StorageError
from minidist.text import shown

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://")
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "mtime", "LastModified", "created")
"""What file systems say of the content of a file, by which a changed one is known."""


def is_address(name: str) -> bool:
    """Whether a name is an address, such as s3://bucket/model, and neither a path nor a name on the hub."""
    return _ADDRESS.match(name) is not None


def cache() -> Path:
    """Where copies are kept: MINIDIST_CACHE, or ~/.cache/minidist."""
    return Path(os.environ.get("MINIDIST_CACHE") or Path.home() / ".cache" / "minidist").expanduser()


def names(address: str, where: str) -> set[str]:
    """Names of the files right in a directory. Raises StorageError."""
    return {name for name in _Remote(address, where).files if "/" not in name}


def fetch(address: str, where: str, patterns: tuple[str, ...] = ("*",)) -> Path:
    """The local copy of a file, or of the files in a directory and below whose names match one of the patterns.

    A file that this machine has already is not copied again, unless it has changed at its address; processes of one machine
    copy it once. `where`: the key of the configuration, for messages. Raises StorageError.
    """
    remote = _Remote(address, where)
    folder = cache() / "inputs" / remote.fingerprint
    with _locked(folder):
        for name in remote.files:
            if any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns) and not (folder / name).is_file():
                remote.copy(name, folder / name)
    return folder / next(iter(remote.files)) if remote.is_file else folder


class _Remote:
    """A file or a directory at an address, as its file system lists it: `files` are names below it, and what marks them."""

    def __init__(self, address: str, where: str) -> None:
        self._address, self._where = address, where
        self._shown = shown(address)
        with self._refused():
            self._system, self._path = system_of(address, where)
            self.is_file = self._system.isfile(self._path)
            found = self._system.find(self._path, detail=True)
        if not found:
            raise StorageError(f"{where}: nothing is at {self._shown}; correct the address")
        root = PurePosixPath(self._path)
        parent = root.parent if self.is_file else root
        self.files: dict[str, dict[str, Any]] = {_below(path, parent): found[path] for path in sorted(found)}
        for name in self.files:
            if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                raise StorageError(f"{where}: {self._shown} lists a file outside itself, {name!r}; correct the address")

    @property
    def fingerprint(self) -> str:
        """Of the address and of what its file system says of the content."""
        marks = {name: [facts.get("size"), *(str(facts.get(mark)) for mark in _MARKS)] for name, facts in self.files.items()}
        return hashlib.sha256(json.dumps([self._shown, marks]).encode()).hexdigest()[:32]

    def copy(self, name: str, target: Path) -> None:
        """Copy one file, whole or not at all."""
        source = self._path if self.is_file else f"{self._path.rstrip('/')}/{name}"
        partial = target.with_name(f".{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._refused():
            self._system.get_file(source, str(partial))
        size = self.files[name].get("size")
        if size is not None and partial.stat().st_size != size:
            raise StorageError(f"{self._where}: {self._shown} gave {name} cut short; try again")
        partial.rename(target)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Errors of a file system, which may be of any type, as a StorageError without what it says of credentials."""
        try:
            yield
        except (StorageError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001
            reason = shown(str(error), 200)
            raise StorageError(
                f"{self._where}: {self._shown} cannot be read ({type(error).__name__}: {reason}); correct the address, or give "
                "this machine access as its file system expects"
            ) from None


def system_of(address: str, where: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it. Raises StorageError where the package of the file system is
    missing, and for an address with a password."""
    from fsspec.core import url_to_fs
    from fsspec.registry import get_filesystem_class, known_implementations

    if _PASSWORD.search(address):
        raise StorageError(
            f"{where}: {shown(address)} is written with a password; leave it out: file systems find theirs in the "
            "environment, such as AWS_PROFILE or AWS_ACCESS_KEY_ID, or in files of your home directory"
        )
    protocol = address.partition("://")[0]
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        needed = str(known_implementations.get(protocol, {}).get("err", error)).rstrip(".")
        raise StorageError(f"{where}: addresses of {protocol}:// need a package that is missing: {needed}") from None
    except ValueError:
        raise StorageError(f"{where}: no file system is known for {protocol}://; expected s3://, gs:// or file://") from None
    system, path = url_to_fs(address)
    return system, str(path).rstrip("/")


def _below(path: str, parent: PurePosixPath) -> str:
    try:
        return PurePosixPath(path).relative_to(parent).as_posix()
    except ValueError:
        return PurePosixPath(path).as_posix()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of this machine at a time copies into the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder.with_name(f"{folder.name}.lock")).open("w")
    except OSError as error:
        raise StorageError(f"{folder} cannot be used ({error.strerror}); set MINIDIST_CACHE to another directory") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
