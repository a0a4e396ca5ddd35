"""Calls that wait at one time are shared out among several roles, to the least busy first."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")


class Gathering(Generic[R, A, B]):
    """Joins the calls that are made before the loop turns: each goes to the role with the fewest items under way.

    Args:
        roles: do the same work.
        send: `await send(role, items)` returns a result for each item, in order.
    """

    def __init__(self, roles: Sequence[R], send: Callable[[R, list[A]], Awaitable[list[B]]]) -> None:
        self._roles = list(roles)
        self._send = send
        self._load = [0] * len(roles)
        self._waiting: list[tuple[A, asyncio.Future[B]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def call(self, item: A) -> B:
        """The result of one item. A failure reaches every call that was sent with it."""
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            task = asyncio.ensure_future(self._turn())
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        self._waiting.append((item, future))
        return await future

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        calls, self._waiting = self._waiting, []
        shares: dict[int, list[tuple[A, asyncio.Future[B]]]] = {}
        for call in calls:
            number = min(range(len(self._roles)), key=self._load.__getitem__)
            self._load[number] += 1
            shares.setdefault(number, []).append(call)
        await asyncio.gather(*(self._share(number, share) for number, share in shares.items()))

    async def _share(self, number: int, calls: list[tuple[A, asyncio.Future[B]]]) -> None:
        """The calls of one role, in one request."""
        try:
            results = await self._send(self._roles[number], [item for item, _ in calls])
        except Exception as error:  # noqa: BLE001 - handed to those who wait, whatever it is
            for _, future in calls:
                if not future.done():
                    future.set_exception(error)
            return
        finally:
            self._load[number] -= len(calls)
        for (_, future), result in zip(calls, results, strict=True):
            if not future.done():
                future.set_result(result)
