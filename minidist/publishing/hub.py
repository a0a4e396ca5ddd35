"""A finished model on its way to the Hugging Face hub. The token comes from the environment alone and is written nowhere."""

import os
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from minidist.config.run import RunConfig
from minidist.errors import ConfigError, HubError, RunDirectoryError
from minidist.run.files import write_json
from minidist.run.tracking import log

if TYPE_CHECKING:
    from huggingface_hub import HfApi

UPLOADED = "hub.json"
"""File of a run's directory that names the repository to which final/ was uploaded."""
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_LEAVE_OUT = "or leave out run.push_to_hub and upload with `minidist push` later"


def check_push(run: object) -> None:
    """A run that uploads its model can do so, as far as it can be known before the run: package, token, connection. Raises
    ConfigError."""
    if isinstance(run, RunConfig) and run.push_to_hub is not None:
        check_hub(f"run.push_to_hub is {run.push_to_hub}", _LEAVE_OUT)


def check_hub(asked: str, otherwise: str) -> None:
    """The hub can be reached with a token that it knows. Raises ConfigError: what asked for it, the reason and a remedy."""
    if find_spec("huggingface_hub") is None:
        raise ConfigError(
            f"{asked}, and the package huggingface_hub is not installed; pip install huggingface_hub, {otherwise}"
        )
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"{asked}, and HF_HUB_OFFLINE forbids connections to the hub; unset it, {otherwise}")
    if (token := _token()) is None:
        raise ConfigError(f"{asked}, and the environment holds no token; export HF_TOKEN=... (one that may write), {otherwise}")
    _check_token(token, asked, otherwise)


def _check_token(token: str, asked: str, otherwise: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        _client(token).whoami()
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            refused = "and the hub refuses the token in HF_TOKEN"
            raise ConfigError(f"{asked}, {refused}; export one that may write, {otherwise}") from None
        raise ConfigError(f"{asked}, and the hub answers {_reason(error)}; try again later, {otherwise}") from None
    except (_http_error(), OSError, ValueError) as error:
        raise ConfigError(
            f"{asked}, and the hub cannot be reached ({_reason(error)}); check the network, {otherwise}"
        ) from None


def push(directory: Path, repository: str, *, private: bool) -> str:
    """Upload final/ of a run; returns the address of the model. Raises HubError, and RunDirectoryError without a final/.

    Args:
        directory: of the run.
        repository: OWNER/NAME, created where it does not exist.
        private: a repository that is created is private; one that exists stays as it is.
    """
    final = directory / "final"
    if not final.is_dir():
        raise RunDirectoryError(f"{directory} holds no final/; give the directory of a finished run of sft, distill or teach")
    client = _client(_token())
    try:
        client.create_repo(repository, private=private, exist_ok=True)
        done = client.upload_folder(repo_id=repository, folder_path=final, commit_message="Upload of a minidist run")
    except (_http_error(), OSError, ValueError, KeyboardInterrupt) as error:  # the hub's own errors are of these kinds
        later = f"minidist push {shlex.quote(str(directory))} {repository}" + " --public" * (not private)
        found = f"{final} is whole, and was not uploaded to {repository} ({_reason(error)})"
        raise HubError(f"{found}; to upload it later: {later}") from None
    address = f"{client.endpoint}/{repository}"
    write_json(directory / UPLOADED, {"repository": repository, "address": address, "commit": getattr(done, "oid", None)})
    log.info("uploaded to %s", address)
    return address


def _client(token: str | None) -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token or False)


def _http_error() -> type[Exception]:
    """The base of the errors of the HTTP library that this version of the hub's package uses: requests, httpx or httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1]


def _token() -> str | None:
    return next((value.strip() for name in _VARIABLES if (value := os.environ.get(name, "")).strip()), None)


def _reason(error: BaseException) -> str:
    """The first line of an error, without the token."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    token = _token()
    return text.replace(token, "...") if token else text
