"""New weights from the learner to the engines, and the proof that they arrived: through Ray's object store, from which all
engines on a node read the same copy, or over a channel, from process to process."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

import numpy as np
import ray

from minidist.cluster.roster import any_lost, present_role, standing
from minidist.cluster.supervision import Supervised
from minidist.concurrency import both, together
from minidist.config import DistillConfig
from minidist.errors import CanaryError, DivergedError, RoleError
from minidist.protocols import Learner, RolloutEngine, WeightTransfer
from minidist.run.tracking import log
from minidist.types import Array, Channel, Outline, Probe

_ATTEMPTS = 3
"""Publications that may take too long, one after another."""


class ProvedTransfer(WeightTransfer):
    """Publishes to all engines and proves it: each must give the learner's log-probabilities of fresh random tokens.

    An engine may report success and keep a stale head, so only a log-probability proves a sync: it depends on every layer
    and, through the softmax, on every row of the output head.

    A publication that takes too long, or in which an engine is lost, is given up and made again, whole; a lost engine is
    started again meanwhile. One that is started again between two publications is given the weights published last, and proved
    likewise.

    Args:
        tolerance_nats: of each token. Weights of 16 bits round a likely token's logit by a tenth of a nat now and then on
            either side: with `coarse`, of 95 tokens in 100, and a tenth of it on average.
        timeout_s: longest publication, seconds.
    """

    backend = "object_store"

    def __init__(self, tolerance_nats: float, *, coarse: bool = False, timeout_s: float = 600) -> None:
        self.proved = 0
        self._tolerance = tolerance_nats
        self._coarse = coarse
        self._timeout_s = timeout_s
        self._publishing = asyncio.Lock()
        """Held while engines take weights."""
        self._learner: Any = None
        self._published: tuple[Probe, int] | None = None
        """The learner's probe of the weights published last, and their version."""

    async def publish(self, learner: Learner, engines: Sequence[RolloutEngine]) -> float:
        """Largest difference of any engine, nats. Raises CanaryError beyond the tolerance, and DivergedError where the
        learner's own log-probabilities are not finite."""
        members = engines if isinstance(engines, list) else list(engines)
        await together(engine.claim(self._renew) for engine in members if isinstance(engine, Supervised))
        async with self._publishing:
            self.proved += 1
            return await self._until_published(learner, members)

    async def _until_published(self, learner: Learner, members: list[RolloutEngine]) -> float:
        """Publish to the members that can take weights, again where one of them is lost or the time is over."""
        late = 0
        while True:
            present = await standing(members)
            roles = [present_role(member) for member in present]
            try:
                async with asyncio.timeout(self._timeout_s) as deadline:
                    return await self._publish(learner, present, roles)
            except TimeoutError:
                if not deadline.expired():
                    raise
                late += 1
                where = (
                    f"weight sync {self.proved}: not all engines had the weights after {self._timeout_s:g} s ({self.backend})"
                )
                if late == _ATTEMPTS:
                    remedy = "raise cluster.weight_transfer_timeout_s, or set cluster.weight_transfer=object_store"
                    raise RoleError(f"{where}, {late} times; {remedy}") from None
                log.warning("%s; it is made again", where)
            except RoleError as error:
                if not await any_lost(present, roles):
                    raise
                log.warning("weight sync %d is made again: %s", self.proved, error)

    async def _publish(self, learner: Learner, members: Sequence[Any], roles: Sequence[Any]) -> float:
        """One attempt; `roles`: of the members, in their present processes."""
        probe = await self._send(learner, roles)
        worst = self._prove(probe, await together(role.score(probe.tokens.tolist()) for role in roles))
        self._learner, self._published = learner, (probe, await roles[0].version() if roles else 0)
        for member, role in zip(members, roles, strict=True):
            if isinstance(member, Supervised) and member.role is role:
                member.bare = False
        return worst

    async def _renew(self, role: Any) -> bool:
        """Give the weights published last to an engine that was made anew, and prove it. False where they are gone."""
        async with self._publishing:
            if self._published is None or (weights := await self._weights()) is None:
                return False
            probe, version = self._published
            await role.load(weights)
            if await role.version() != version:
                return False  # the learner has gone on
            self._prove(probe, [await role.score(probe.tokens.tolist())])
            return True

    async def _weights(self) -> Any:
        """The learner's weights, as an engine loads them; None where it cannot give them."""
        try:
            return await _stored(self._learner)
        except RoleError:
            return None

    def _prove(self, probe: Probe, scored: Sequence[list[list[float]]]) -> float:
        """The largest difference of any engine; raises as `publish`."""
        differences = [np.abs(probe.logprobs - rows) for rows in scored]
        worst = float(np.max(differences)) if scored else 0.0
        if not np.isfinite(probe.logprobs).all():
            cause = "its weights have grown beyond their precision; lower learner.optimizer.lr"
            raise DivergedError(f"weight sync {self.proved}: the student's log-probabilities are not finite: {cause}")
        if not all(self._close(each) for each in differences):
            mean = max(float(each.mean()) for each in differences)
            found = f"an engine's log-probabilities differ from the learner's by {worst:.3g} nats, {mean:.3g} on average"
            most = f"{self._tolerance:g}" + (
                f" for 95 tokens in 100, or {self._tolerance / 10:g} on average" if self._coarse else ""
            )
            raise CanaryError(f"weight sync {self.proved}: {found}, more than {most}; the engine did not take the new weights")
        return worst

    def _close(self, differences: Array) -> bool:
        if not self._coarse:
            return bool(differences.max() <= self._tolerance)
        within = np.percentile(differences, 95) <= self._tolerance and differences.mean() <= self._tolerance / 10
        return bool(within)

    async def _send(self, learner: Learner, engines: Sequence[RolloutEngine]) -> Probe:
        """Replace the weights of all engines; returns the probe of the learner whose weights they are."""
        raise NotImplementedError


class ObjectStoreTransfer(ProvedTransfer):
    """The learner stores the weights once in Ray's object store, and every engine reads them there. They stay until the next
    publication, for an engine that is started again: the learner may have gone on."""

    _kept: Any = None

    async def _send(self, learner: Learner, engines: Sequence[RolloutEngine]) -> Probe:
        self._kept = None  # so that the store has room for the new ones
        weights = self._kept = await _stored(learner)
        # Two roles that wait for nothing of each other.
        probe, _ = await both(learner.probe(self.proved), together(engine.load(weights) for engine in engines))
        return probe

    async def _weights(self) -> Any:
        return self._kept


async def _stored(learner: Any) -> Any:
    """The learner's weights; a learner in actors leaves them in the object store, and gives their reference."""
    keep = getattr(learner, "keep", None)
    weights = await (learner.weights(False) if keep is None else keep("weights", False))
    assert weights is not None, "the first rank gives the weights"
    return weights


class Receives(Protocol):
    """An engine that takes weights over a channel; see `VLLMEngine`."""

    async def join(self, channel: Channel, first: int) -> bool: ...

    async def receive(self, backend: str, outline: Outline, handles: list[dict[str, Any]] | None = None) -> None: ...

    async def finish(self, version: int) -> None: ...


class ChannelTransfer(ProvedTransfer):
    """The learner's first rank sends the weights to every process of the engines at once (gloo, nccl), or opens its memory to
    those on its GPU (ipc). They meet at the first publication.

    Where a process dies or is late, the publication ends, at the latest after the timeout. An engine that was interrupted has
    weights of two versions, and computes nothing until it has been given all.

    Args:
        tolerance_nats: as of `ProvedTransfer`.
        backend: gloo, nccl or ipc.
        processes: of each engine.
        timeout_s: longest publication, seconds.
        coarse: as of `ProvedTransfer`.
    """

    def __init__(self, tolerance_nats: float, backend: str, *, processes: int, timeout_s: float, coarse: bool = False) -> None:
        super().__init__(tolerance_nats, coarse=coarse, timeout_s=timeout_s)
        self.backend = backend
        self._processes = processes
        self._outline: Outline | None = None
        self._met: list[Any] = []
        """The engines that have joined the channel."""

    async def _send(self, learner: Learner, engines: Sequence[RolloutEngine]) -> Probe:
        if [*engines] != self._met:
            self._outline = None
        try:
            return await self._over_channel(learner, engines)
        except BaseException:
            self._outline = None  # the next publication meets anew
            raise

    async def _over_channel(self, learner: Any, engines: Sequence[Any]) -> Probe:
        outline = self._outline = self._outline or await self._join(learner, engines)
        self._met = [*engines]
        version = int((await learner.describe())["optimizer_steps"])
        if self.backend == "ipc":
            handles = await learner.channel("export", outline.names)
            await together(engine.receive(self.backend, outline, handles) for engine in engines)
            await learner.channel("release")
        else:
            receiving = together(engine.receive(self.backend, outline) for engine in engines)
            await both(learner.channel("send", outline.names), receiving)
        probe, _ = await both(learner.probe(self.proved), together(engine.finish(version) for engine in engines))
        return probe

    async def _join(self, learner: Any, engines: Sequence[Receives]) -> Outline:
        """Let all processes meet; returns what the learner then sends."""
        outline: Outline = await learner.channel("outline")
        host = await learner.ask(ray.util.get_node_ip_address)
        port = await learner.channel("open", self.backend, host)
        channel = Channel(self.backend, host, port, 1 + self._processes * len(engines), self._timeout_s)
        joining: Awaitable[list[bool]] = together(
            engine.join(channel, 1 + self._processes * number) for number, engine in enumerate(engines)
        )
        _, heads = await both(learner.channel("join", channel), joining)
        # vLLM's own backends know nothing of tied names.
        return outline if self.backend == "gloo" else outline.untied(head=all(heads))


def make_transfer(config: DistillConfig) -> ProvedTransfer:
    """The transfer of `cluster.weight_transfer`, with the tolerance of `canaries`."""
    tolerance, cluster = config.canaries.sync_tolerance(*config.dtypes.values()), config.cluster
    coarse, seconds = config.canaries.coarse(*config.dtypes.values()), cluster.weight_transfer_timeout_s
    if config.weight_transfer == "object_store":
        return ObjectStoreTransfer(tolerance, coarse=coarse, timeout_s=seconds)
    options = {"processes": cluster.rollout.devices, "timeout_s": seconds}
    return ChannelTransfer(tolerance, config.weight_transfer, coarse=coarse, **options)
