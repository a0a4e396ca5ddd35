"""A role in a Ray actor, behind the verbs of the role."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from minidist.errors import MinidistError, RoleError


class Remote:
    """Proxy of the object in an actor: `await remote.verb(...)` runs `verb` in the actor.

    minidist's errors are raised as themselves, all others as a RoleError that names the role.
    """

    def __init__(self, name: str, actor: Any) -> None:
        self._name = name
        self.actor = actor

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            # Spread, not packed in a tuple: Ray resolves references only where they are direct arguments.
            return await self._await(verb, self.actor.call.remote(verb, *arguments, **options))

        return call

    async def keep(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """The result as a Ray reference, which other actors read without passing through this process."""
        return await self._await(verb, self.actor.keep.remote(verb, *arguments, **options))

    async def _await(self, verb: str, pending: Any) -> Any:
        try:
            return await pending
        except asyncio.CancelledError:
            ray.cancel(pending)  # so that the role stops: no caller waits for the result
            raise
        except RayTaskError as error:
            if isinstance(error.cause, MinidistError):
                raise error.cause from None
            raise RoleError(f"the {self._name} failed in {verb}: {type(error.cause).__name__}: {error.cause}") from error
        except RayActorError as error:
            reason = str(error).strip().splitlines()[0]
            raise RoleError(f"the {self._name} died in {verb}: {reason}; its output is in the run's logs/") from error


class Host:
    """The actor: holds one role and runs its verbs."""

    _role: Any = None

    async def call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        if verb == "start":
            await self._clear()
            self._role = arguments[0](**options)
            return None
        if verb == "ask":
            return arguments[0](**options)
        return await getattr(self._role, verb)(*arguments, **options)

    async def keep(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """Like `call`, but the result stays in the object store, and its reference is returned."""
        result = await self.call(verb, *arguments, **options)
        return None if result is None else ray.put(result)

    async def _clear(self) -> None:
        """Close the last role and free its memory before the next role is made."""
        if self._role is not None:
            await self._role.close()
            self._role = None
            gc.collect()
