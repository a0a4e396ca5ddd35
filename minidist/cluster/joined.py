"""An actor on a node of a joined cluster: it works in the driver's directory, and its groups speak over its node's network."""

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from minidist.errors import ConfigError


@dataclass(frozen=True)
class SharedDirectory:
    """What all nodes of a run share.

    Args:
        working: directory that the driver works in, and that relative paths of a configuration start from. Ray starts an actor
            in the directory of its node's raylet.
        mark: a file that the driver has written to the run's directory, by which an actor knows it.
    """

    working: Path
    mark: Path

    @classmethod
    def marked(cls, directory: Path) -> "SharedDirectory":
        """The driver's, with a mark in the run's directory."""
        directory.mkdir(parents=True, exist_ok=True)
        mark = directory.resolve() / f".driver-{uuid.uuid4().hex}"
        mark.touch()
        return cls(Path.cwd(), mark)

    def enter(self, node: str) -> None:
        """Work in the driver's directory. Raises ConfigError on a node that does not share it, or not the run's directory."""
        needed = {"the directory that the command was given in": self.working, "run.directory": self.mark}
        for name, path in needed.items():
            if not path.exists():
                raise ConfigError(
                    f"cluster.address: node {node} does not see {name} ({self.mark.parent if path is self.mark else path}); "
                    "models, data and results must be on a file system that all nodes share: set run.directory to a directory "
                    "there, and give the command there"
                )
        os.chdir(self.working)


def name_interfaces(node: str) -> None:
    """Have gloo and NCCL meet at the interface that has the node's address; a set variable stays.

    gloo would bind the address of the host's name, which is often that of loopback, and another node would find nobody there.
    """
    interface = interface_of(node, psutil.net_if_addrs())
    if interface is not None:
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", interface)


def interface_of(address: str, interfaces: Mapping[str, Sequence[Any]]) -> str | None:
    """The network interface, of psutil's `net_if_addrs`, that has an IP address; None where none has."""
    return next((name for name, found in interfaces.items() if address in (each.address.split("%")[0] for each in found)), None)
