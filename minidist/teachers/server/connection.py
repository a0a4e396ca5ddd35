"""Questions over HTTP: asked again while the server is busy, absent or answers what no server of its kind would."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from minidist.config.teacher import ServerConfig
from minidist.errors import RoleError
from minidist.run.tracking import log
from minidist.teachers.payload import Malformed
from minidist.teachers.server import protocol
from minidist.teachers.server.wire import Question
from minidist.text import shown

_FIRST_PAUSE_S = 0.5
_LONG_S = 5.0
"""An attempt that is longer is said, since people wait."""
_LEAST_LIMIT = 64 << 20
"""Bytes that every answer may have."""
_AGAIN = {httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_EARLY, httpx.codes.TOO_MANY_REQUESTS}
T = TypeVar("T")


@dataclass
class Counts:
    """Answers, requests that were sent again, the seconds of the pauses before them, and the error before the last."""

    requests: int = 0
    retries: int = 0
    paused_s: float = 0.0
    last_error: str = ""


class NoAnswer(RoleError):
    """One attempt without a usable answer; `pause_s`: the pause that the server requests."""

    def __init__(self, found: str, pause_s: float | None = None) -> None:
        super().__init__(found)
        self.pause_s = pause_s


class Refused(RoleError):
    """A request that the server refuses for good; `found`: its status and message."""

    def __init__(self, sentence: str, path: str = "", status: int = 0, found: str = "") -> None:
        super().__init__(sentence)
        self.path = path
        self.status = status
        self.found = found


class Connection:
    """At most `server.requests` requests at a time, each in up to `server.attempts` attempts.

    Cancelling a call cancels its request. Raises RoleError where the server refuses, or gives no usable answer.

    Args:
        server: its address and the limits of requests.
        refusal: a full sentence on an answer with which the server refuses for good.
        classes: log-probabilities that are requested at each position, which bound the size of an answer.
        where: the section that holds `server`, for messages.
        logs: whether pauses are lines of the log.
    """

    def __init__(
        self,
        server: ServerConfig,
        refusal: Callable[[httpx.Response], str],
        *,
        classes: int = 0,
        where: str = "teacher.server",
        logs: bool = True,
    ) -> None:
        self._server = server
        self._refusal = refusal
        self._classes = classes
        self._where = where
        self._logs = logs
        self.address = protocol.address(server)
        self.counts = Counts()
        self._pausing = 0
        self._slots = asyncio.Semaphore(self._server.requests)
        # Requests wait for a slot, never for a connection. The limit of timeout_s is set around a whole request.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._server.requests)
        key = protocol.headers(self._server, where)
        self._client = httpx.AsyncClient(base_url=self.address, headers=key, timeout=None, limits=limits)

    async def ask(self, question: Question[T]) -> T:
        """What the server answers; every attempt but the first follows a pause that doubles, or that the server requests."""
        started, attempts, error = time.monotonic(), self._server.attempts, NoAnswer("")
        for attempt in range(attempts):
            asked = time.monotonic()
            try:
                async with self._slots:
                    answer = question.read(await self._send(question))
                self.counts.requests += 1
                return answer
            except Malformed as malformed:
                error = NoAnswer(f"{malformed}; {self._where}.api={self._server.api} needs such a server")
            except NoAnswer as failure:
                error = failure
            if attempt + 1 < attempts:
                doubled = _FIRST_PAUSE_S * 2 ** min(attempt, 30) * random.uniform(0.5, 1)
                pause = min(doubled if error.pause_s is None else error.pause_s, self._server.pause_s)
                await self._pause(pause, error, late=time.monotonic() - asked > _LONG_S)
        raise RoleError(
            f"the server at {self.address} gave no usable answer in {attempts} attempts "
            f"({self._where}.attempts) over {time.monotonic() - started:.1f} s; the last error: {error}"
        ) from error.__cause__

    async def close(self) -> None:
        await self._client.aclose()

    async def _pause(self, seconds: float, error: NoAnswer, *, late: bool) -> None:
        """Wait; of all requests that wait at one time, the first is a line of the log, and always after a `late` answer."""
        if (self._logs or late) and not self._pausing:
            log.warning("the server at %s: %s; the request is sent again in %.1f s", self.address, error, seconds)
        self.counts.retries += 1
        self.counts.last_error = str(error)
        self.counts.paused_s += seconds
        self._pausing += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._pausing -= 1

    async def _send(self, question: Question[T]) -> bytes:
        """The bytes of an answer; NoAnswer where the next attempt may have one, RoleError where none will."""
        try:
            async with asyncio.timeout(self._server.timeout_s):
                answer = await self._receive(question)
        except TimeoutError as error:
            raise NoAnswer(f"no whole answer in {self._server.timeout_s:g} s ({self._where}.timeout_s)") from error
        except httpx.RequestError as error:
            raise NoAnswer(shown(f"{type(error).__name__} {error}")) from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise RoleError(f"{self._where}.url is no address ({shown(str(error))}); correct it") from None
        if answer.status_code in _AGAIN or answer.is_server_error:
            raise NoAnswer(protocol.error_text(answer), _retry_after(answer))
        if not answer.is_success:
            raise Refused(self._refusal(answer), question.path, answer.status_code, protocol.error_text(answer))
        return answer.content

    async def _receive(self, question: Question[T]) -> httpx.Response:
        """An answer, read whole. Raises NoAnswer for one of more bytes than scores of the request can have."""
        # A request writes each token id with a comma; an answer has at most 1 KiB for each class of each token.
        content = _written(question.body)
        tokens = len(content) // 2
        limit, size, chunks = max(_LEAST_LIMIT, 1024 * tokens * (1 + self._classes)), 0, list[bytes]()
        kind = {"Content-Type": "application/json"} if content else {}
        async with self._client.stream(question.method, question.path, content=content, headers=kind) as answer:
            async for chunk in answer.aiter_bytes():
                size += len(chunk)
                if size > limit:
                    raise NoAnswer(f"an answer of more than {limit / 2**20:,.0f} MiB, which scores of the request cannot have")
                chunks.append(chunk)
        headers = [(name, value) for name, value in answer.headers.multi_items() if name.lower() != "content-encoding"]
        return httpx.Response(answer.status_code, headers=headers, content=b"".join(chunks), request=answer.request)


def _written(body: dict[str, Any] | None) -> bytes:
    """A request as JSON. Raises RoleError for values of a row that JSON has not, such as bytes."""
    try:
        return b"" if body is None else json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RoleError(
            f"a request cannot be written as JSON ({shown(str(error))}); correct the row that it asks for"
        ) from None


def _retry_after(answer: httpx.Response) -> float | None:
    """The pause that the server requests, in seconds; its header holds seconds or a date."""
    header = answer.headers.get("Retry-After", "")
    if header.replace(".", "", 1).isdecimal():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
