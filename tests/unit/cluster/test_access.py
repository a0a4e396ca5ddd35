"""Reaching a cluster: loopback stays loopback, and another machine's wants a token."""

from pathlib import Path

import pytest

from minidist.cluster import access
from minidist.cluster.access import check_token, ray_environment, token
from minidist.errors import ConfigError

STAYS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token and no cluster, whatever this machine has."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(access, "_LAST", tmp_path / "last")


@pytest.mark.parametrize("address", [None, "127.0.0.1:6379", "localhost:6379", "[::1]:6379", "http://127.1.2.3:8265"])
def test_a_cluster_on_loopback_stays_there(address: str | None) -> None:
    assert ray_environment(address) == STAYS


def test_auto_is_the_cluster_of_the_job_or_the_last_one_that_was_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ray_environment("auto") == {}
    (tmp_path / "last").write_text("127.0.0.1:6379")
    assert ray_environment("auto") == STAYS
    monkeypatch.setenv("RAY_ADDRESS", "203.0.113.5:6379")
    assert ray_environment("auto") == {}


def test_a_token_is_found_where_ray_looks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("one\n")
    assert token() == "one"
    (tmp_path / "two").write_text("two")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "two"))
    assert token() == "two"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "three")
    assert token() == "three"


@pytest.mark.parametrize("address", ["203.0.113.5:6379", "http://ray.example.com:8265", "https://u:p@203.0.113.5"])
def test_another_machines_cluster_needs_a_token(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"^cluster.address: .* is another machine, and no token .* RAY_AUTH_TOKEN_PATH"
    ) as caught:
        check_token(address, "cluster.address")
    assert "u:p" not in str(caught.value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check_token(address, "cluster.address")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    check_token(address, "cluster.address")


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "localhost", "http://[::1]:8265", "auto"])
def test_this_machines_cluster_needs_none(address: str) -> None:
    check_token(address, "cluster.address")
