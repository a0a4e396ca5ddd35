"""Whether the Ray cluster of a run still stands: its control store and, where the run has started it, its one node."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from minidist.config.cluster import ClusterConfig
from minidist.errors import ClusterLostError, RoleError

_SERVERS = {"gcs_server": "control store (gcs_server)", "raylet": "node (raylet)"}
"""The processes without which Ray does nothing."""
_LOOK_S = 1.0
_LONGEST_S = 30.0
"""Ray ends the process that has not reached the control store for 60 seconds, with a message of its own."""
_GIVEN_UP_S = 10.0
"""What waits for a lost cluster is cancelled; where it first ends what it is doing, it is cancelled again after so long."""


class RayHealth:
    """Looks at the processes of a cluster that this process has started, and asks the control store for its nodes."""

    def __init__(self, config: ClusterConfig) -> None:
        self._address = config.address
        self._pause_s = config.supervision.heartbeat_s
        self._timeout_s = min(config.supervision.heartbeat_timeout_s, _LONGEST_S)
        children = [] if self._address else psutil.Process().children()
        self._servers = {each: _SERVERS[each.name()] for each in children if each.name() in _SERVERS}

    def check(self) -> None:
        """Raise ClusterLostError where a process of this run's own Ray has ended."""
        for process, name in self._servers.items():
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise ClusterLostError(f"Ray's {name} has died")

    def kill(self) -> None:
        """End the processes of this run's own Ray, which may hang, so that nothing waits for them."""
        for process in self._servers:
            if process.is_running():
                process.kill()

    @asynccontextmanager
    async def required(self) -> AsyncGenerator[None, None]:
        """What runs inside is cancelled where Ray dies or hangs, and ClusterLostError is raised."""
        working, found = asyncio.current_task(), list[ClusterLostError]()
        assert working is not None

        async def cancel_when_lost() -> None:
            try:
                await self._watch()
            except ClusterLostError as error:
                found.append(error)
                for _ in range(2):
                    working.cancel()
                    await asyncio.sleep(_GIVEN_UP_S)

        watching = asyncio.ensure_future(cancel_when_lost())
        try:
            yield
        except (asyncio.CancelledError, RoleError) as error:
            if found:
                while working.uncancel():
                    pass
                raise found[0] from None
            if isinstance(error, RoleError):  # an actor's death may be known before that of its cluster
                self.check()
                await self._ask()
            raise
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Look until cancelled. Raises ClusterLostError where Ray has died or hangs."""
        asking = asyncio.ensure_future(self._ask_again_and_again())
        try:
            while not asking.done():
                self.check()
                await asyncio.wait([asking], timeout=_LOOK_S)
            await asking
        finally:
            asking.cancel()

    async def _ask_again_and_again(self) -> None:
        while True:
            await self._ask()
            await asyncio.sleep(self._pause_s)

    async def _ask(self) -> None:
        """Ask for the nodes. Raises ClusterLostError where there is no answer, or none of them lives."""
        where = f" at {self._address}" if self._address else ""
        try:
            async with asyncio.timeout(self._timeout_s):
                while (nodes := await in_daemon(_nodes)) is None:
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise ClusterLostError(f"Ray's control store{where} has not answered for {self._timeout_s:g} s") from None
        if not any(node["Alive"] for node in nodes):
            raise ClusterLostError(f"Ray's node{where} has given no sign of life, and its control store counts it as dead")


def _nodes() -> list[dict[str, Any]] | None:
    """The nodes as the control store knows them; None where it cannot be asked."""
    try:
        return ray.nodes()
    except (RayError, RuntimeError, OSError):
        return None


async def in_daemon(call: Callable[[], Any]) -> Any:
    """The result of a call in a thread of its own, which may hang for ever: nobody waits for it when this process ends."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def give(result: Any, error: BaseException | None) -> None:
        if not answer.done():
            answer.set_result(result) if error is None else answer.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as failure:  # noqa: BLE001  # handed to the caller, whatever it is
            error = failure
        if not loop.is_closed():
            loop.call_soon_threadsafe(give, result, error)

    threading.Thread(target=run, daemon=True, name="ray health").start()
    return await answer
