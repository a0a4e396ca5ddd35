"""The page of a live run, served on loopback, or beyond it to those who have its token."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from minidist.errors import ConfigError
from minidist.report.page import Report
from minidist.report.serve import ReportServer
from tests.support.runs import Parsed, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("live") / "run", steps=3, finished=False)


@contextmanager
def served(run: Path, host: str = "127.0.0.1") -> Iterator[tuple[ReportServer, httpx.Client]]:
    """A server, and a client at the port where it listens."""
    with ReportServer(Report([run]), host) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}", trust_env=False) as client:
                yield server, client
        finally:
            server.shutdown()
            thread.join()


def test_what_is_new_is_sent_and_what_is_known_is_not(run: Path) -> None:
    with served(run) as (_, client):
        page = client.get("/")
        assert page.status_code == 200 and "connect-src 'self'" in page.text and page.headers["Cache-Control"] == "no-store"
        seen = str(next(values["data-live"] for tag, values in Parsed(page.text).elements if tag == "html"))
        assert client.get("/body", params={"seen": seen}).status_code == 304
        with (run / "metrics.jsonl").open("a") as stream:
            stream.write('{"step": 3, "loss/nats_per_token": 0.25}\n{"step": 4, "loss/na')
        body = client.get("/body", params={"seen": seen})
        assert body.status_code == 200 and body.headers["X-Signature"] != seen
        assert Parsed(body.text).figures["loss/nats_per_token"]["series"][0]["y"][-1] == 0.25
        assert len(body.text) < len(page.text) - 4e6, "Plotly's script is sent once"


def test_it_listens_on_loopback_alone(run: Path) -> None:
    with served(run) as (server, client):
        assert server.server_address[0] == "127.0.0.1" and server.token is None
        assert server.address == f"http://127.0.0.1:{server.server_port}/"
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 403, "a name of another site that points here"
        assert client.get("/", headers={"Host": "localhost:80"}).status_code == 200


@pytest.mark.parametrize("path", ["/../config.json", "/config.json", "/page.js"])
def test_no_file_is_served(run: Path, path: str) -> None:
    with served(run) as (_, client):
        assert client.get(path).status_code == 404
        assert client.post("/").status_code == 501


def test_beyond_loopback_a_token_is_asked_for(run: Path) -> None:
    with served(run, "0.0.0.0") as (server, client):
        assert server.token is not None and len(server.token) >= 32 and server.address.endswith(f"?token={server.token}")
        for query in ("", "?token=", "?token=x", f"?token={server.token[:-1]}", "?token=ä"):
            for path in ("/", "/body"):
                found = client.get(path + query)
                assert found.status_code == 403 and server.token not in found.text
        assert client.get(f"/?token={server.token}").status_code == 200
        assert client.get("/body").status_code == 200, "a cookie stands for the token from then on"
        client.cookies.clear()
        assert client.get("/body").status_code == 403


def test_a_port_in_use_is_one_sentence(run: Path) -> None:
    with (
        served(run) as (server, _),
        pytest.raises(ConfigError, match=r"cannot be served at 127.0.0.1, port .*; set --host or --port"),
    ):
        ReportServer(Report([run]), "127.0.0.1", server.server_port)
