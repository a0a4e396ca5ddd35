"""How a process reaches a Ray cluster: over loopback alone where the cluster is this machine's, with Ray's token elsewhere."""

import ipaddress
import os
from pathlib import Path

import psutil

from minidist.cluster.joined import interface_of
from minidist.errors import ConfigError

_TOKEN = Path(".ray/auth_token")
"""Where `ray get-auth-token --generate` keeps a user's token, from the home directory."""
_LAST = Path("/tmp/ray/ray_current_cluster")
"""Where `ray start` writes the address of a machine's cluster."""


def ray_environment(address: str | None) -> dict[str, str]:
    """Variables that Ray reads when it is imported, for a run on the cluster at `cluster.address`.

    On loopback Ray would take the address of this machine's network for 127.0.0.1, at which a cluster that listens on loopback
    alone does not answer; the variable has it stay, on every system.
    """
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if address is None or _is_loopback(_host(_found(address))) else {}


def token() -> str | None:
    """Ray's token where Ray itself looks for it: RAY_AUTH_TOKEN, the file at RAY_AUTH_TOKEN_PATH, or the user's own."""
    if text := os.environ.get("RAY_AUTH_TOKEN"):
        return text
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / _TOKEN)
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def check_token(address: str, setting: str) -> None:
    """Raise ConfigError for a cluster on another machine where no token is found: whoever reaches a cluster without one runs
    code on it. `setting`: where the address comes from."""
    host = _host(address)
    if host == "auto" or _is_loopback(host) or interface_of(host, psutil.net_if_addrs()) is not None:
        return
    if token() is None and os.environ.get("RAY_AUTH_MODE", "").lower() != "disabled":
        raise ConfigError(
            f"{setting}: {host} is another machine, and no token of Ray's is found: set RAY_AUTH_TOKEN_PATH to a file with the "
            "cluster's token, or RAY_AUTH_MODE=disabled for a cluster that has none"
        )


def _found(address: str) -> str:
    """The address that `auto` stands for: of the job that runs this process, or of the cluster last started on this machine."""
    if address != "auto":
        return address
    if started := os.environ.get("RAY_ADDRESS"):
        return started
    try:
        return _LAST.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return address


def _host(address: str) -> str:
    """The host of `scheme://host:port`, any of whose other parts may be missing."""
    place = address.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place if place.count(":") > 1 else place.partition(":")[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
