"""`minidist report --serve`: the page of runs that go on, sent to a browser that asks for what is new every few seconds."""

import hmac
import ipaddress
import secrets
import threading
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from minidist.errors import ConfigError
from minidist.report.page import Report

_COOKIE = "minidist_report"


class ReportServer(ThreadingHTTPServer):
    """Serves a report to readers.

    Args:
        report: the page.
        host: address to listen at. Beyond this machine's own addresses, readers need `token`.
        port: 0 for any that is free.

    Raises ConfigError where the address cannot be used.
    """

    daemon_threads = True

    def __init__(self, report: Report, host: str = "127.0.0.1", port: int = 0) -> None:
        self.report = report
        self.token = None if is_loopback(host) else secrets.token_urlsafe(24)
        self._making = threading.Lock()
        self._made: tuple[str, str] | None = None
        self._host = host
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"the report cannot be served at {host}, port {port}: {error}; set --host or --port") from None

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        query = "" if self.token is None else f"?token={self.token}"
        return f"http://{self._host}:{self.server_port}/{query}"

    def body(self) -> tuple[str, str]:
        """The signature of what the runs have written, and the HTML that shows it; made once for all readers."""
        with self._making:
            signature = self.report.signature()
            if self._made is None or self._made[0] != signature:
                self._made = signature, self.report.body()
            return self._made

    def page(self) -> str:
        """The whole page."""
        with self._making:
            return self.report.page(live=True)

    def knows(self, host: str) -> bool:
        """Whether a request is meant for this server: a page of another site that has its name point here is not."""
        name = urlsplit(f"//{host}").hostname or ""
        return self.token is not None or is_loopback(name)


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        try:
            known = self.server.knows(self.headers.get("Host", ""))
        except ValueError:
            known = False
        if not known or not self._allowed(query.get("token", [""])[0]):
            self._send(HTTPStatus.FORBIDDEN, "The address of this page, as minidist report printed it, has a token.", {})
        else:
            try:
                self._answer(address.path, query.get("seen", [""])[0])
            except OSError as error:
                self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error.filename} cannot be read: {error.strerror}", {})

    def _answer(self, path: str, seen: str) -> None:
        token = self.server.token
        if path == "/":
            cookie = {} if token is None else {"Set-Cookie": f"{_COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"}
            self._send(HTTPStatus.OK, self.server.page(), cookie)
        elif path == "/body":
            signature, body = self.server.body()
            if seen == signature:
                self._send(HTTPStatus.NOT_MODIFIED, "", {})
            else:
                self._send(HTTPStatus.OK, body, {"X-Signature": signature})
        else:
            self._send(HTTPStatus.NOT_FOUND, "No such page.", {})

    def _allowed(self, given: str) -> bool:
        if (token := self.server.token) is None:
            return True
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            cookie = None
        candidates = (given, cookie.value if cookie else "")
        return any(hmac.compare_digest(each.encode(), token.encode()) for each in candidates)

    def _send(self, status: HTTPStatus, text: str, more: dict[str, str]) -> None:
        content = text.encode()
        self.send_response(status)
        kind = "text/html" if status == HTTPStatus.OK else "text/plain"
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        headers |= {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Content-Length": str(len(content))}
        for name, value in (headers | more).items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: their addresses hold the token."""


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
