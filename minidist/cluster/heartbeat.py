"""Signs of life: every actor is asked for one now and then, and one that gives none hangs."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from minidist.config.supervision import SupervisionConfig
from minidist.run.tracking import log


class Heartbeats:
    """Asks each actor for a sign of life, which a thread of its own gives while the role computes.

    The wait for an answer counts only while this process itself works: neither a suspended machine nor a driver that is busy
    makes an actor seem to hang.

    Args:
        config: pauses and limits.
        actors: those that there are now.
        kill: ends the process of one that hangs.
        now: the time, seconds.
    """

    def __init__(
        self,
        config: SupervisionConfig,
        actors: Callable[[], Sequence[Any]],
        kill: Callable[[Any], Awaitable[None]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pause_s = config.heartbeat_s
        self._limit_s = config.heartbeat_timeout_s
        self._actors = actors
        self._kill = kill
        self._now = now
        self._asked: dict[Any, asyncio.Task[None]] = {}
        self._silent: dict[Any, float] = {}

    async def run(self) -> None:
        """Ask until this is cancelled."""
        last = self._now()
        try:
            while True:
                await asyncio.sleep(self._pause_s)
                passed, last = self._now() - last, self._now()
                await self.look(min(passed, 2 * self._pause_s))
        finally:
            for asked in self._asked.values():
                asked.cancel()
            await asyncio.gather(*self._asked.values(), return_exceptions=True)

    async def look(self, passed: float) -> None:
        """Read the answers to the last questions, asked `passed` seconds ago, and ask again."""
        actors = [actor for actor in self._actors() if actor.lost is None and not actor.starting]
        self._silent = {actor: self._silent.get(actor, 0.0) for actor in actors}
        for actor in actors:
            asked = self._asked.pop(actor, None)
            if asked is None or asked.done():
                if asked is not None and not asked.cancelled():
                    asked.exception()  # a death is known to the actor's proxy by now
                self._silent[actor] = 0.0
                self._asked[actor] = asyncio.create_task(actor.beat())
                continue
            self._asked[actor] = asked
            self._silent[actor] += passed
            if self._silent[actor] >= self._limit_s:
                await self._lose(actor)
        for gone in [actor for actor in self._asked if actor not in self._silent]:
            self._asked.pop(gone).cancel()

    async def _lose(self, actor: Any) -> None:
        self._asked.pop(actor).cancel()
        log.warning("%s", actor.lose(f"hangs: it has given no sign of life for {self._silent[actor]:.0f} s"))
        await self._kill(actor)
