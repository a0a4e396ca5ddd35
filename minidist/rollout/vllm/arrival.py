"""New weights of a vLLM engine: whether they are whole, and those that come over a channel."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minidist.concurrency import Worker
from minidist.errors import RoleError
from minidist.rollout.vllm.reload import has_head
from minidist.rollout.vllm.transfer import join_info, update_info
from minidist.types import Channel, Outline


class WeightArrival:
    """The weights of an engine, whose thread is `worker`. While they are replaced, and after a replacement that failed, they
    may be of two versions, and the engine refuses to compute."""

    def __init__(self, engine: Any, worker: Worker) -> None:
        self._engine = engine
        self._worker = worker
        self._whole = True
        self._wait_s: float | None = None

    def check_whole(self) -> None:
        """Raises RoleError where the weights may be of two versions."""
        if not self._whole:
            cause = "an update under way has not ended, or one has failed"
            raise RoleError(f"the engine holds weights of two versions ({cause}); publish all weights again")

    @contextmanager
    def whole_after(self) -> Iterator[None]:
        """All weights are replaced inside; cached keys and values of the old ones are dropped."""
        self._whole = False
        yield
        if not self._engine.reset_prefix_cache():
            raise RoleError("vLLM did not clear its prefix cache after new weights: requests on the old weights still run")
        self._whole = True

    async def join(self, channel: Channel, first: int) -> bool:
        """Meet the learner; see `VLLMEngine.join`."""
        self._wait_s = channel.timeout_s
        await self._worker.run(self._rpc, "init_weight_transfer_engine", join_info(channel, first))
        return all(await self._worker.run(self._rpc, _has_head))

    async def receive(self, backend: str, outline: Outline, handles: list[dict[str, Any]] | None) -> None:
        """Take weights that come over the channel; until `finish`, the engine refuses to compute."""
        self._whole = False
        await self._worker.run(self._receive, update_info(backend, outline, handles))

    async def finish(self) -> None:
        """All weights have come."""
        await self._worker.run(self._finish)

    def _receive(self, update: dict[str, Any]) -> None:
        self._rpc(_end_update)
        self._rpc("start_weight_update")
        self._rpc("update_weights", update)

    def _finish(self) -> None:
        with self.whole_after():
            self._rpc("finish_weight_update")

    def _rpc(self, method: Any, *arguments: Any) -> list[Any]:
        """The results of a call in every process that holds a part of the model."""
        return self._engine.collective_rpc(method, self._wait_s, arguments)


def _end_update(worker: Any) -> None:
    """End an update that was given up, since another process failed; vLLM would refuse to start the next one."""
    if worker._weight_update_active:
        worker.finish_weight_update()


def _has_head(worker: Any) -> bool:
    return has_head(worker.get_model())
