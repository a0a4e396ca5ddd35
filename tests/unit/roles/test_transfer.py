"""A weight sync is proved by log-probabilities: a correct sync passes, every other is refused."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minidist.errors import CanaryError, DivergedError, RoleError
from minidist.roles.transfer import ChannelTransfer, ObjectStoreTransfer
from minidist.types import Channel, Outline
from tests.support.fakes import StaleEngine, TableEngine, TableLearner

OLD, NEW = np.random.default_rng(0).normal(size=(2, 5, 5))


class SpoiltEngine(TableEngine):
    """Loads the weights, and changes one log-probability."""

    def __init__(self, by: float) -> None:
        super().__init__(OLD)
        self.by = by

    async def score(self, sequences: list[list[int]]) -> list[list[float]]:
        rows = await super().score(sequences)
        rows[-1][-1] += self.by
        return rows


def publish(*engines: TableEngine, tolerance: float = 1e-3) -> float:
    return asyncio.run(ObjectStoreTransfer(tolerance).publish(TableLearner(NEW), engines))


def test_a_correct_sync_returns_its_largest_difference() -> None:
    engines = TableEngine(OLD), TableEngine(OLD)
    assert publish(*engines) < 1e-12
    assert all(np.array_equal(engine.table, NEW) for engine in engines)
    assert publish(TableEngine(OLD), SpoiltEngine(5e-4)) == pytest.approx(5e-4)


def test_a_stale_engine_is_refused() -> None:
    with pytest.raises(CanaryError, match=r"weight sync 1: .* differ from the learner's by .* more than 0.001"):
        publish(StaleEngine(OLD))


@pytest.mark.parametrize("bad", [StaleEngine(OLD), SpoiltEngine(2e-3), SpoiltEngine(-2e-3), SpoiltEngine(math.nan)])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_wrong_engine_among_correct_ones_is_refused(bad: TableEngine, index: int) -> None:
    engines = [TableEngine(OLD), TableEngine(OLD)]
    engines.insert(index, bad)
    with pytest.raises(CanaryError):
        publish(*engines)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_student_that_has_grown_without_bound_has_diverged_and_its_engine_is_not_blamed(number: float) -> None:
    table = NEW.copy()
    table[:, :] = number
    with pytest.raises(DivergedError, match=r"weight sync 1: the student's log-probabilities are not finite: .*lower learner"):
        asyncio.run(ObjectStoreTransfer(1e-3).publish(TableLearner(table), [TableEngine(OLD)]))


class RoundedEngine(TableEngine):
    """Loads the weights, and gives log-probabilities of which some, or all, differ."""

    def __init__(self, some: float, all_: float) -> None:
        super().__init__(OLD)
        self.some, self.all = some, all_

    async def score(self, sequences: list[list[int]]) -> list[list[float]]:
        rows = [[value + self.all for value in row] for row in await super().score(sequences)]
        rows[-1][-1] += self.some
        return rows


@pytest.mark.parametrize(
    ("some", "all_", "refused"), [(0.0, 0.0, False), (0.9, 0.0, False), (0.0, 0.03, False), (0.0, 0.06, True), (9.0, 0.0, True)]
)
def test_in_16_bits_one_token_may_round_but_not_all(some: float, all_: float, refused: bool) -> None:
    """A tenth of the tolerance on average, and the tolerance for 95 tokens in 100."""
    transfer = ObjectStoreTransfer(0.5, coarse=True)
    learner = TableLearner(NEW)
    count = asyncio.run(learner.probe(1)).logprobs.size
    assert count > 20 and 0.9 / count < 0.05 < 9.0 / count
    if not refused:
        assert asyncio.run(transfer.publish(learner, [RoundedEngine(some, all_)])) == pytest.approx(some + all_, abs=1e-9)
        return
    with pytest.raises(CanaryError, match="the engine did not take the new weights"):
        asyncio.run(transfer.publish(learner, [RoundedEngine(some, all_)]))


@pytest.mark.parametrize("coarse", [False, True])
def test_a_stale_engine_is_refused_in_any_precision(coarse: bool) -> None:
    with pytest.raises(CanaryError):
        asyncio.run(ObjectStoreTransfer(0.5, coarse=coarse).publish(TableLearner(NEW), [StaleEngine(OLD)]))


def test_every_sync_has_its_own_number_and_probe() -> None:
    transfer, learner, engine = ObjectStoreTransfer(1e-3), TableLearner(NEW), TableEngine(OLD)
    asked: list[int] = []
    whole = learner.probe

    async def probe(version: int):  # type: ignore[no-untyped-def]
        asked.append(version)
        return await whole(version)

    learner.probe = probe  # type: ignore[method-assign]
    for _ in range(3):
        asyncio.run(transfer.publish(learner, [engine]))
    assert asked == [1, 2, 3]
    assert transfer.proved == 3


class ChannelLearner(TableLearner):
    """Sends its table over a channel that is a list."""

    def __init__(self, wire: list[np.ndarray]) -> None:
        super().__init__(NEW)
        self.wire = wire

    async def ask(self, question: Callable[[], str]) -> str:
        return "10.0.0.1"

    async def describe(self) -> dict[str, Any]:
        return {"optimizer_steps": 7}

    async def channel(self, verb: str, *arguments: Any) -> Any:
        self.calls.append(verb)
        if verb == "send":
            self.wire.append(self.table)
        answers = {"outline": Outline(("table",), ("float64",), ((5, 5),), {"lm_head.weight": "table"}), "open": 4711}
        return {"export": [{"GPU-1": self.table}]}.get(verb, answers.get(verb))


class ChannelEngine(TableEngine):
    """Takes the table that it is sent, or that it is given a handle of."""

    def __init__(self, wire: list[np.ndarray], calls: list[str]) -> None:
        super().__init__(OLD, calls)
        self.wire, self.joined, self.outlines = wire, [(Channel("", "", 0, 0, 0.0), 0)][:0], [Outline((), (), (), {})][:0]

    async def join(self, channel: Channel, first: int) -> bool:
        self.joined.append((channel, first))
        return True

    async def receive(self, backend: str, outline: Outline, handles: list[dict[str, Any]] | None = None) -> None:
        self.outlines.append(outline)
        while not (self.wire or handles):
            await asyncio.sleep(0)
        self.calls.append("receive")
        self.table = (self.wire[-1] if handles is None else handles[0]["GPU-1"]).copy()

    async def finish(self, version: int) -> None:
        self.calls.append("finish")
        self._version = version


def over(backend: str, wire: list[np.ndarray], timeout_s: float = 5) -> tuple[ChannelTransfer, ChannelLearner, list[Any]]:
    learner = ChannelLearner(wire)
    return (
        ChannelTransfer(1e-3, backend, processes=2, timeout_s=timeout_s),
        learner,
        [ChannelEngine(wire, learner.calls) for _ in range(2)],
    )


@pytest.mark.parametrize("backend", ["gloo", "nccl", "ipc"])
def test_engines_meet_the_learner_once_and_take_what_it_sends(backend: str) -> None:
    transfer, learner, engines = over(backend, [])
    for _ in range(2):
        assert asyncio.run(transfer.publish(learner, engines)) < 1e-12  # type: ignore[arg-type]
    assert learner.calls[:3] == ["outline", "open", "join"] and learner.calls.count("join") == 1
    meeting = Channel(backend, "10.0.0.1", 4711, 5, 5)  # the learner, and two processes of each engine
    assert [engine.joined for engine in engines] == [[(meeting, 1)], [(meeting, 3)]]
    assert [asyncio.run(engine.version()) for engine in engines] == [7, 7]
    # vLLM's own backends know nothing of names that share a tensor.
    names = ("table",) if backend == "gloo" else ("table", "lm_head.weight")
    assert all(outline.names == names for engine in engines for outline in engine.outlines)


def test_shared_memory_is_released_only_when_every_engine_has_read_it() -> None:
    transfer, learner, engines = over("ipc", [])
    asyncio.run(transfer.publish(learner, engines))  # type: ignore[arg-type]
    assert learner.calls[3:] == ["export", "receive", "receive", "release", "finish", "finish"]


def test_a_publication_that_takes_too_long_ends_with_a_sentence() -> None:
    transfer, learner, engines = over("gloo", [], timeout_s=0.05)

    async def silent(verb: str, *arguments: Any) -> Any:
        return None if verb == "send" else await ChannelLearner.channel(learner, verb, *arguments)

    learner.channel = silent  # type: ignore[method-assign]
    expected = r"weight sync 1: .* the weights after 0.05 s \(gloo\), 3 times; raise cluster.weight_transfer_timeout_s"
    with pytest.raises(RoleError, match=expected):
        asyncio.run(transfer.publish(learner, engines))  # type: ignore[arg-type]


def test_a_stale_engine_is_refused_over_a_channel_too() -> None:
    transfer, learner, engines = over("gloo", [OLD])
    learner.wire = []
    with pytest.raises(CanaryError, match="did not take the new weights"):
        asyncio.run(transfer.publish(learner, engines))  # type: ignore[arg-type]
