"""An actor of a joined cluster: its directory, and the network that its groups speak over."""

import asyncio
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from minidist.cluster import remote
from minidist.cluster.joined import SharedDirectory, interface_of, name_interfaces
from minidist.cluster.remote import Host
from minidist.errors import ConfigError


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedDirectory:
    """A driver that works in `driver`, whose run's directory is `driver/runs/x`; this process is in `raylet`."""
    for name in ("driver", "raylet"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "driver")
    shared = SharedDirectory.marked(Path("runs/x"))
    monkeypatch.chdir(tmp_path / "raylet")
    return shared


def test_an_actor_works_in_the_drivers_directory(
    shared: SharedDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    for library in ("GLOO", "NCCL"):
        monkeypatch.setenv(f"{library}_SOCKET_IFNAME", "removed again after the test")
        monkeypatch.delenv(f"{library}_SOCKET_IFNAME")
    found: list[Path] = []
    asyncio.run(Host(shared=shared).call("1", "start", lambda: found.append(Path.cwd())))
    assert found == [tmp_path / "driver"]
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "lo"


def test_a_node_that_does_not_share_the_drivers_directory_is_named(shared: SharedDirectory) -> None:
    shutil.rmtree(shared.working)
    with pytest.raises(ConfigError, match=rf"node 10\.0\.0\.7 does not see the directory .* \({shared.working}\); models"):
        shared.enter("10.0.0.7")


def test_a_node_with_another_directory_of_the_same_name_is_named(shared: SharedDirectory) -> None:
    shared.mark.unlink()
    with pytest.raises(ConfigError, match=rf"does not see run\.directory \({shared.mark.parent}\); .* set run\.directory"):
        shared.enter("10.0.0.7")


def test_groups_meet_at_the_interface_of_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def addresses(*found: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(address=each) for each in found]

    interfaces = {
        "lo": addresses("127.0.0.1", "::1"),
        "eth0": addresses("10.0.0.17", "fe80::5%eth0"),
        "ib0": addresses("10.0.0.1", "fe80::1%ib0"),
    }
    assert [interface_of(ip, interfaces) for ip in ("10.0.0.1", "10.0.0.17", "fe80::1", "10.0.0.2")] == [
        "ib0",
        "eth0",
        "ib0",
        None,
    ]
    monkeypatch.setattr("minidist.cluster.joined.psutil.net_if_addrs", lambda: interfaces)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    name_interfaces("10.0.0.1")
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("mine", "ib0")
