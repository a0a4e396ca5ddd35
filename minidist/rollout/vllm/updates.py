"""How a vLLM engine takes new weights: from an object that holds them all, or over a channel from the learner."""

from typing import Any

from minidist.concurrency import Worker
from minidist.errors import RoleError
from minidist.rollout.vllm import transfer
from minidist.rollout.vllm.processes import of_living
from minidist.rollout.vllm.reload import has_head, reload
from minidist.types import Channel, Outline, Weights


class WeightUpdates:
    """Updates of the weights of one engine, in the engine's thread. The caller proves each."""

    def __init__(self, engine: Any, worker: Worker, on_gpu: bool) -> None:
        self._engine = engine
        self._worker = worker
        self._on_gpu = on_gpu
        self._whole = True
        """Whether the weights are of one version: not while an update is under way, nor after one that failed."""
        self._wait_s: float | None = None

    async def reload(self, weights: Weights | list[tuple[str, Any]]) -> None:
        """Replace the weights in every process that holds a part of the model, and drop cached keys and values."""
        await self._worker.run(self._reload, weights)

    async def join(self, channel: Channel, first: int) -> bool:
        """Meet the learner; see `VLLMEngine.join`."""
        self._wait_s = channel.timeout_s
        await self._rpc("init_weight_transfer_engine", transfer.join_info(channel, first))
        return all(await self._rpc(_has_head))

    async def receive(self, backend: str, outline: Outline, handles: list[dict[str, Any]] | None) -> None:
        """Take weights that come over the channel; until `finish`, the engine refuses to compute."""
        self._whole = False
        await self._worker.run(self._receive, transfer.update_info(backend, outline, handles))

    async def finish(self) -> None:
        """All weights have come: drop cached keys and values."""
        await self._rpc("finish_weight_update")
        await self._worker.run(self._drop_cached)
        self._whole = True

    def check(self) -> None:
        """Raises RoleError where the weights are of no version."""
        if not self._whole:
            cause = "an update under way has not ended, or one has failed"
            raise RoleError(f"the engine holds weights of two versions ({cause}); publish all weights again")

    async def _rpc(self, method: Any, *arguments: Any) -> list[Any]:
        """The results of a call in every process that holds a part of the model."""
        return await self._worker.run(self._call, method, self._wait_s, arguments)

    def _call(self, *arguments: Any, **options: Any) -> list[Any]:
        with of_living(self._engine):
            return self._engine.collective_rpc(*arguments, **options)

    def _reload(self, weights: Weights | list[tuple[str, Any]]) -> None:
        self._whole = False
        self._call(reload, args=(weights,), kwargs={"on_gpu": self._on_gpu})
        self._drop_cached()
        self._whole = True

    def _receive(self, update: dict[str, Any]) -> None:
        self._call(_end_update, self._wait_s)
        self._call("start_weight_update", self._wait_s)
        self._call("update_weights", self._wait_s, (update,))

    def _drop_cached(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise RoleError("vLLM did not clear its prefix cache after new weights: requests on the old weights still run")


def _end_update(worker: Any) -> None:
    """End an update that was given up, since another process failed; vLLM would refuse to start the next one."""
    if worker._weight_update_active:
        worker.finish_weight_update()


def _has_head(worker: Any) -> bool:
    return has_head(worker.get_model())
