"""A copy of a run's directory at an fsspec address: sent with each checkpoint, fetched where the run goes on elsewhere."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typing_extensions import TypedDict

from minidist.errors import RunDirectoryError, StorageError
from minidist.run.files import LOCK, read_record, sha256, write_json
from minidist.run.tracking import log
from minidist.storage import system_of
from minidist.text import shown

MANIFEST = "mirror.json"
"""Written last: a copy that has none, or an older one, is of the time before."""
_CURE = "set run.mirror to another address, or run.overwrite=true to replace what is there"


class Manifest(TypedDict):
    """`id`: of the run, on whichever machine it goes on. `files`: sum of each file of the copy."""

    id: str
    files: dict[str, str]


class Mirror:
    """The copy of `directory` at `address`; None: no copy, and nothing is done."""

    def __init__(self, address: str | None, directory: Path) -> None:
        self._address = address
        self._directory = directory
        self._stamps: dict[str, tuple[tuple[int, int], str]] = {}
        """Size, time of change and sum of each local file, when it was last read."""

    def pull(self, *, overwrite: bool) -> None:
        """Fetch the run if this machine has none in its directory. Raises RunDirectoryError where another run is at the address
        or a file is not the one that was sent, and StorageError."""
        if self._address is None or overwrite or (found := self._remote()) is None:
            return
        if (self._directory / "config.json").exists():
            if self._own() is None or self._own() != found["id"]:
                raise RunDirectoryError(f"another run than that of {self._directory} is at {self._shown}; {_CURE}")
            return
        log.info("fetching the run from %s", self._shown)
        for name, expected in sorted(found["files"].items(), key=lambda item: item[0] == "config.json"):
            self._get(name, expected)
        write_json(self._directory / MANIFEST, found)

    def check(self) -> None:
        """Raise StorageError where the file system of the address is missing."""
        if self._address is not None:
            system_of(self._address, "run.mirror")

    def push(self, *, last: bool = False) -> None:
        """Send what has changed, then the manifest, then remove what is gone here. An address that cannot be written to is a
        warning, since the next checkpoint tries again; `last`: StorageError."""
        if self._address is None:
            return
        try:
            self._push()
        except StorageError as error:
            if last:
                raise
            log.warning("the copy of the run is not up to date: %s", error)

    def _push(self) -> None:
        before = self._remote() or Manifest(id="", files={})
        files = {name: self._sum(name) for name in self._names()}
        manifest = Manifest(id=self._own() or uuid.uuid4().hex, files=files)
        with self._refused("written"):
            system, root = system_of(str(self._address), "run.mirror")
            for name, content in files.items():
                if before["files"].get(name) != content:
                    system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
                    system.put_file(str(self._directory / name), f"{root}/{name}")
            write_json(self._directory / MANIFEST, manifest)
            system.put_file(str(self._directory / MANIFEST), f"{root}/{MANIFEST}")
            for name in sorted(set(before["files"]) - set(files)):
                if system.exists(f"{root}/{name}"):
                    system.rm_file(f"{root}/{name}")

    def _names(self) -> list[str]:
        """All files of the run but those that are being written or belong to this machine alone."""
        found = (path.relative_to(self._directory) for path in self._directory.rglob("*") if path.is_file())
        kept = [path for path in found if not any(part.startswith(".") for part in path.parts) and path.suffix != ".partial"]
        return sorted(path.as_posix() for path in kept if path.as_posix() not in (MANIFEST, LOCK))

    def _sum(self, name: str) -> str:
        path = self._directory / name
        stat = path.stat()
        stamp = (stat.st_size, stat.st_mtime_ns)
        if self._stamps.get(name, (None, ""))[0] != stamp:
            self._stamps[name] = (stamp, sha256(path))
        return self._stamps[name][1]

    def _own(self) -> str | None:
        """The id of the run in the directory; None before it was sent."""
        file = self._directory / MANIFEST
        return read_record(file, Manifest, "remove it, and set another run.mirror")["id"] if os.path.lexists(file) else None

    def _remote(self) -> Manifest | None:
        """The manifest at the address; None where there is no run."""
        with self._refused("read"), TemporaryDirectory() as folder:
            system, root = system_of(str(self._address), "run.mirror")
            if not system.exists(f"{root}/{MANIFEST}"):
                return None
            fetched = Path(folder) / MANIFEST
            system.get_file(f"{root}/{MANIFEST}", str(fetched))
            return read_record(fetched, Manifest, f"at {self._shown}; {_CURE}")

    def _get(self, name: str, expected: str) -> None:
        target = self._directory / name
        if not target.resolve().is_relative_to(self._directory.resolve()):
            raise RunDirectoryError(f"{self._shown} lists a file outside itself, {name!r}; {_CURE}")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        with self._refused("read"):
            system, root = system_of(str(self._address), "run.mirror")
            system.get_file(f"{root}/{name}", str(partial))
        if sha256(partial) != expected:
            partial.unlink()
            raise RunDirectoryError(f"{name} at {self._shown} is not the file that was sent; {_CURE}")
        partial.rename(target)

    @property
    def _shown(self) -> str:
        return shown(str(self._address))

    @contextmanager
    def _refused(self, done: str) -> Iterator[None]:
        """Errors of a file system, which may be of any type, as a StorageError."""
        try:
            yield
        except (StorageError, RunDirectoryError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001
            reason = shown(str(error), 200)
            raise StorageError(
                f"run.mirror: {self._shown} cannot be {done} ({type(error).__name__}: {reason}); the files in "
                f"{self._directory} are whole: correct the address or the access, and give the same command again"
            ) from None


def mirror_of(config: Any) -> Mirror:
    """The mirror of a run's directory."""
    return Mirror(config.run.mirror, config.run.directory)
