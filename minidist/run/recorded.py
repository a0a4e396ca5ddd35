"""What a run's directory records of the run, read back."""

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minidist.config import CONFIGS, Command
from minidist.config.sentence import sentence
from minidist.errors import RunDirectoryError
from minidist.run.directory import Recorded, Summary
from minidist.run.files import read_record


def read_config(directory: Path) -> Command:
    """The configuration with which a run was started last. Raises RunDirectoryError where no run of this version wrote it."""
    if not directory.is_dir():
        raise RunDirectoryError(f"no run directory at {directory}")
    file = directory / "config.json"
    found = read_record(file, Recorded, "give the directory of a run")
    if (kind := CONFIGS.get(found["stage"])) is None:
        raise RunDirectoryError(f"{file} is of the stage {found['stage']!r}; expected one of {', '.join(CONFIGS)}")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise RunDirectoryError(f"{file} is not one of this version's: {sentence(error, kind)}") from None


def read_summary(directory: Path) -> dict[str, Any] | None:
    """summary.json of a finished run, or None. Raises RunDirectoryError."""
    file = directory / "summary.json"
    return dict(read_record(file, Summary, "give the directory of a run")) if os.path.lexists(file) else None
