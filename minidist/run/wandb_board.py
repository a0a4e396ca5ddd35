"""A run's metrics on Weights & Biases, where `run.wandb` asks for it."""

import os
import secrets
from collections.abc import Mapping
from importlib import import_module
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict

from minidist.config.run import WandbConfig
from minidist.config.secrets import HIDDEN, without_secret_settings
from minidist.errors import ConfigError
from minidist.run.files import read_record, write_json

_KEY = "WANDB_API_KEY"
_REMEDY = "set run.wandb.mode=offline, or leave run.wandb out"


@with_config(extra="allow")
class Known(TypedDict):
    """The fields of wandb.json: `id` is the run's on Weights & Biases, so that a resumed run goes on there."""

    id: str


class WandbBoard:
    """Sends the metrics of a run.

    Args:
        config: the section `run.wandb`.
        directory: of the run.
        settings: the run's configuration, which is sent without its secrets.

    Raises ConfigError when Weights & Biases refuses the run.
    """

    def __init__(self, config: WandbConfig, directory: Path, settings: Mapping[str, Any]) -> None:
        self._wandb: Any = import_module("wandb")
        options = config.model_dump(exclude={"name"})
        options |= {"name": config.name or directory.name, "id": _id(directory), "resume": "allow", "dir": str(directory)}
        options |= {"config": without_secret_settings(dict(settings)), "settings": self._wandb.Settings(console="off")}
        try:
            self._run: Any = self._wandb.init(**options)
            # Steps may be taken again after a stop, and an evaluation has the step it follows: their own axis allows both.
            self._run.define_metric("*", step_metric="step")
        except self._wandb.Error as error:
            raise ConfigError(f"Weights & Biases refuses the run: {_without_key(error)}; {_REMEDY}") from None

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()


def check_wandb(config: WandbConfig | None) -> None:
    """Raise ConfigError where the package is missing, or the key of an account, for which wandb would ask in a run's middle."""
    if config is None:
        return
    try:
        import_module("wandb")
    except ImportError:
        missing = "run.wandb needs the package wandb, which is not installed"
        raise ConfigError(f"{missing}; pip install wandb, or leave run.wandb out") from None
    if config.mode == "online" and not os.environ.get(_KEY) and not _has_login():
        raise ConfigError(f"run.wandb finds no account: set {_KEY} or give `wandb login` first; or {_REMEDY}")


def _has_login() -> bool:
    """Whether `wandb login` has written a key to the file of logins."""
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    host = (os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").partition("://")[2].partition("/")[0].partition(":")[0]
    try:
        return netrc(str(file)).authenticators(host) is not None
    except (OSError, NetrcParseError, UnicodeDecodeError):
        return False


def _without_key(error: Exception) -> str:
    """The error's words in one line, without the key where they repeat it."""
    text, key = " ".join(str(error).split()), os.environ.get(_KEY)
    return text.replace(key, HIDDEN) if key else text


def _id(directory: Path) -> str:
    file = directory / "wandb.json"
    if file.exists():
        return read_record(file, Known, "remove it to begin a new run on Weights & Biases")["id"]
    write_json(file, {"id": (made := secrets.token_hex(6))})
    return made
