"""Slow calls: in one thread for each role, several at once until the first failure, or protected from cancellation."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


_SHARED: ContextVar[ThreadPoolExecutor | None] = ContextVar("shared thread", default=None)


class Worker:
    """Runs calls one after another, always in the same thread: torch and vLLM keep per-thread state."""

    def __init__(self, name: str) -> None:
        shared = _SHARED.get()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name) if shared is None else shared
        self._owns_pool = shared is None

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of the call, which finds the context variables of its caller."""
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: context.run(call, *args, **kwargs))

    def run_now(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of the call, for constructors, which cannot await."""
        return self._pool.submit(call, *args, **kwargs).result()

    def close(self) -> None:
        if self._owns_pool:
            self._pool.shutdown(wait=False, cancel_futures=True)


class SharedThread:
    """One thread for the workers of roles that take turns in one process.

    OpenMP keeps helpers for each thread that has computed, as long as it lives. Where a process keeps more threads than it has
    cores, the helpers sleep as soon as they wait, and waking them costs more than the work of a small layer.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="roles")

    @contextmanager
    def for_workers(self) -> Iterator[None]:
        """Workers that are made inside run their calls in this thread."""
        token = _SHARED.set(self._pool)
        try:
            yield
        finally:
            _SHARED.reset(token)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


async def briefly(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of the call, in a thread that ends with it, and OpenMP's helpers for that thread too (see `SharedThread`)."""
    context, pool = copy_context(), ThreadPoolExecutor(max_workers=1, thread_name_prefix="briefly")
    done = False
    try:
        result = await asyncio.get_running_loop().run_in_executor(pool, lambda: context.run(call, *args, **kwargs))
        done = True
        return result
    finally:
        pool.shutdown(wait=done)  # a thread that has ended holds nothing of the result; one that works on is not waited for


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is finished even when this call is cancelled meanwhile. Cancelled twice, it ends at once."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


async def both(first: Awaitable[A], second: Awaitable[B]) -> tuple[A, B]:
    """Two results of different types, as `together` gives those of one."""
    calls: list[Awaitable[Any]] = [first, second]
    left, right = await together(calls)
    return left, right


async def one_by_one(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """All results, in order; each call begins when the one before has ended. After a failure the others never begin."""
    left = deque(calls)
    try:
        return [await left.popleft() for _ in calls]
    finally:
        for call in left:
            call.close()


async def beside(work: Awaitable[T], background: "asyncio.Task[None]") -> T:
    """The result of `work`. A failure of a task in the background cancels it and is raised as itself."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if background.done():
                background.result()
            await asyncio.wait({task} if background.done() else {task, background}, return_when=asyncio.FIRST_COMPLETED)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def nothing() -> None:
    """A call that is not needed, among others that are."""


async def together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """All results, in order. The first failure cancels the other calls and is raised as itself."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """What several generators yield, as it comes, with the number of the generator. The first failure closes the others and is
    raised as itself; so does closing this one."""
    items: asyncio.Queue[tuple[int, T] | asyncio.Task[None]] = asyncio.Queue()

    async def drain(number: int, stream: AsyncGenerator[T, None]) -> None:
        async with aclosing(stream):
            async for item in stream:
                items.put_nowait((number, item))

    tasks = [asyncio.ensure_future(drain(number, stream)) for number, stream in enumerate(streams)]
    for task in tasks:
        task.add_done_callback(items.put_nowait)
    try:
        left = len(tasks)
        while left:
            item = await items.get()
            if isinstance(item, asyncio.Task):
                item.result()
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def deal(
    members: Sequence[A], items: Sequence[B], call: Callable[[A, Sequence[B]], Awaitable[list[T]]], *, each: int = 1
) -> list[T]:
    """Send item i to member i modulo their number; the results, `each` per item, come back in the items' order."""
    count = len(members)
    done = await together(call(member, items[start::count]) for start, member in enumerate(members))
    places = ((index % count, index // count * each) for index in range(len(items)))
    return [result for member, start in places for result in done[member][start : start + each]]
