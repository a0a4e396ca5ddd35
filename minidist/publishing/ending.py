"""The end of a run: its summary, the card of its model, and the upload that it asks for."""

import os
from pathlib import Path
from typing import Any

from minidist.config import Command, DistillConfig, SftConfig, TeachConfig
from minidist.errors import RunDirectoryError
from minidist.publishing.card import CARD, write_card
from minidist.publishing.environment import environment
from minidist.publishing.hub import UPLOADED, check_hub, push
from minidist.run.directory import RunDirectory
from minidist.run.files import read_record
from minidist.run.recorded import read_config, read_summary

_TRAINED = SftConfig | DistillConfig | TeachConfig


def finish(directory: RunDirectory, config: Command, result: dict[str, Any]) -> dict[str, Any]:
    """Write summary.json, which marks a finished run, and the card of a trained model; returns the summary."""
    if not isinstance(config, _TRAINED):
        return directory.finish(result)
    summary = directory.finish(result | {"environment": environment(config.cluster)})
    write_card(directory.final, config, summary)
    return summary


def deliver(config: Command) -> None:
    """Upload the model of a finished run where run.push_to_hub asks for it, and nothing did it yet. Raises HubError."""
    if not isinstance(config, _TRAINED) or config.run.push_to_hub is None:
        return
    directory, repository = config.run.directory, config.run.push_to_hub
    if _uploaded(directory) != repository:
        _complete(directory)
        push(directory, repository, private=config.run.push_private)


def push_run(directory: Path, repository: str | None, *, private: bool) -> str:
    """Upload the model of a finished run, to the repository of its configuration where none is given; returns the address.
    Raises ConfigError, HubError and RunDirectoryError."""
    config = _complete(directory)
    if repository is None and (repository := config.run.push_to_hub) is None:
        raise RunDirectoryError(
            f"{directory} has no run.push_to_hub; give OWNER/NAME after it: minidist push {directory} OWNER/NAME"
        )
    check_hub(f"{directory} is to be uploaded", "and try again")
    return push(directory, repository, private=private)


def _complete(directory: Path) -> SftConfig | DistillConfig | TeachConfig:
    """The configuration of a finished run; its card is written where it is missing. Raises RunDirectoryError."""
    config, summary = read_config(directory), read_summary(directory)
    if not isinstance(config, _TRAINED) or summary is None:
        state = f"is of {config.stage}" if summary is not None else "is not finished"
        raise RunDirectoryError(f"{directory} {state}; only a finished run of sft, distill or teach has a model to upload")
    if not (directory / "final" / CARD).is_file():
        write_card(directory / "final", config, summary)
    return config


def _uploaded(directory: Path) -> str | None:
    """The repository to which the model was uploaded; None where it was not, or other weights have been trained since."""
    file, marked = directory / UPLOADED, directory / "summary.json"
    if not os.path.lexists(file) or file.stat().st_mtime < marked.stat().st_mtime:
        return None
    return read_record(file, dict[str, Any], "remove it to upload the model again").get("repository")
