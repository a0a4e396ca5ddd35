"""Publications in which an engine dies, or is late, and engines that are started again between two of them."""

import asyncio
from typing import Any

import numpy as np
import pytest

from minidist.errors import ActorLostError, CanaryError, RoleError
from minidist.roles.transfer import ChannelTransfer, ObjectStoreTransfer
from tests.support.fakes import StaleEngine, TableEngine, TableLearner
from tests.support.mortal import Place
from tests.unit.roles.test_transfer import NEW, OLD, ChannelEngine, ChannelLearner


def engines_of(place: Place, count: int) -> list[Any]:
    return [place.supervise(f"rollout {number}", TableEngine, table=OLD) for number in range(count)]


def tables(place: Place) -> list[np.ndarray]:
    """Of the processes that live."""
    return [process.role.table for process in place.started if process.lost is None]


@pytest.mark.parametrize("verb", ["load", "score"])
def test_an_engine_that_dies_in_a_publication_is_started_again_and_all_get_the_weights(verb: str) -> None:
    async def run() -> None:
        place, transfer = Place(), ObjectStoreTransfer(1e-3)
        engines = engines_of(place, 3)
        place.started[1].dies_in = verb
        assert await transfer.publish(TableLearner(NEW), engines) < 1e-12
        assert transfer.proved == 1, "one sync, however often it was tried"
        assert await engines[1].score([[1, 2, 3]]) == await engines[0].score([[1, 2, 3]])
        assert all(np.array_equal(table, NEW) for table in tables(place)) and len(tables(place)) == 3

    asyncio.run(run())


def test_an_engine_that_dies_between_two_publications_gets_the_weights_published_last() -> None:
    async def run() -> None:
        place, transfer, learner = Place(), ObjectStoreTransfer(1e-3), TableLearner(NEW)
        engines = engines_of(place, 2)
        await transfer.publish(learner, engines)
        learner.table = NEW + OLD  # the learner goes on
        place.started[0].die()
        await engines[0].score([[1, 2]])
        assert np.array_equal(place.started[2].role.table, NEW)
        assert place.started[2].calls[:3] == ["load", "version", "score"], "proved before it works"

    asyncio.run(run())


def test_an_engine_that_starts_while_weights_are_published_never_gets_older_ones() -> None:
    async def run() -> None:
        place, transfer, learner = Place(), ObjectStoreTransfer(1e-3), TableLearner(OLD)
        engines = engines_of(place, 2)
        await transfer.publish(learner, engines)
        place.gate.clear()
        place.started[0].die()
        assert not engines[0].ready
        learner.version, learner.table = 1, NEW
        publishing = asyncio.ensure_future(transfer.publish(learner, engines))
        await asyncio.sleep(0)
        place.gate.set()
        await publishing
        await engines[0].recovered()
        assert len(place.started) == 3 and all(np.array_equal(table, NEW) for table in tables(place))
        assert await engines[0].version() == 1

    asyncio.run(run())


def test_an_engine_that_does_not_take_its_weights_when_it_starts_again_ends_the_run() -> None:
    async def run() -> None:
        place, transfer = Place(), ObjectStoreTransfer(1e-3)
        made = [TableEngine, StaleEngine]
        engine = place.supervise("rollout", lambda table: made.pop(0)(table), table=OLD)
        await transfer.publish(TableLearner(NEW), [engine])
        place.started[0].die()
        with pytest.raises(ActorLostError, match="the rollout was started again, and did not take its weights: weight sync 1"):
            await engine.score([[1, 2]])

    asyncio.run(run())


class LateEngine(TableEngine):
    """Takes its weights at the third time it is asked."""

    tries = 0

    async def load(self, weights: Any) -> None:
        self.tries += 1
        await asyncio.sleep(0 if self.tries == 3 else 600)
        await super().load(weights)


def test_a_publication_that_is_late_is_made_again_and_three_times_at_most() -> None:
    async def run() -> None:
        transfer = ObjectStoreTransfer(1e-3, timeout_s=0.05)
        late = LateEngine(OLD)
        assert await transfer.publish(TableLearner(NEW), [late, TableEngine(OLD)]) < 1e-12
        expected = r"weight sync 2: not all engines had the weights after 0.05 s \(object_store\), 3 times; raise cluster"
        with pytest.raises(RoleError, match=expected):
            late.tries = 3
            await transfer.publish(TableLearner(NEW), [late])

    asyncio.run(run())


def test_errors_without_a_death_are_raised_as_they_are() -> None:
    async def run() -> None:
        place, transfer = Place(), ObjectStoreTransfer(1e-3)
        stale = place.supervise("rollout 1", StaleEngine, table=OLD)
        with pytest.raises(CanaryError):
            await transfer.publish(TableLearner(NEW), [*engines_of(place, 1), stale])
        learner = TableLearner(NEW)

        async def dies(whole: bool = True) -> Any:
            raise ActorLostError("the learner died", "learner")

        learner.weights = dies  # type: ignore[method-assign]
        with pytest.raises(ActorLostError, match="the learner died"):
            await transfer.publish(learner, engines_of(place, 1))
        assert all(process.life == 0 for process in place.started)

    asyncio.run(run())


def test_engines_without_room_are_left_out_of_publications_and_the_last_one_is_not() -> None:
    async def run() -> None:
        place, transfer = Place(), ObjectStoreTransfer(1e-3)
        engines = engines_of(place, 2)
        place.room = False
        place.started[0].dies_in = "load"
        await transfer.publish(TableLearner(NEW), engines)
        await asyncio.sleep(0)
        await transfer.publish(TableLearner(NEW), engines)
        assert [engine.name for engine in engines] == ["rollout 1"]
        place.started[1].die()
        with pytest.raises(ActorLostError, match="no room for the rollout 1"):
            await transfer.publish(TableLearner(NEW), engines)

    asyncio.run(run())


class StoringLearner(ChannelLearner):
    """Also gives its weights as the object store has them; `version` counts its updates."""

    async def describe(self) -> dict[str, Any]:
        return {"optimizer_steps": self.version}


@pytest.mark.parametrize("verb", ["join", "receive", "finish"])
def test_an_engine_that_dies_over_a_channel_meets_the_others_anew(verb: str) -> None:
    async def run() -> None:
        wire: list[np.ndarray] = []
        place, learner = Place(), StoringLearner(wire)
        transfer = ChannelTransfer(1e-3, "gloo", processes=1, timeout_s=5)
        engines = [place.supervise(f"rollout {n}", ChannelEngine, wire=wire, calls=learner.calls) for n in range(2)]
        place.started[1].dies_in = verb
        assert await transfer.publish(learner, engines) < 1e-12
        await engines[1].recovered()
        assert all(np.array_equal(table, NEW) for table in tables(place)) and len(tables(place)) == 2
        for version in (1, 2):
            learner.version, learner.table = version, OLD + version * NEW
            await transfer.publish(learner, engines)
            assert all(np.array_equal(table, learner.table) for table in tables(place))
            assert [len(process.role.joined) for process in place.started] == [3, 1, 1], "alone, and then with the new one"

    asyncio.run(run())


def test_over_a_channel_an_engine_gets_what_the_learner_holds_unless_it_has_gone_on() -> None:
    async def run() -> None:
        wire: list[np.ndarray] = []
        place, learner = Place(), StoringLearner(wire)
        transfer = ChannelTransfer(1e-3, "gloo", processes=1, timeout_s=5)
        engines = [place.supervise(f"rollout {n}", ChannelEngine, wire=wire, calls=learner.calls) for n in range(2)]
        await transfer.publish(learner, engines)
        place.started[0].die()
        await engines[0].score([[1, 2]])
        assert np.array_equal(place.started[2].role.table, NEW)
        learner.version, learner.table = 1, OLD + NEW
        place.started[2].die()
        with pytest.raises(ActorLostError, match="the weights published last are no longer there"):
            await engines[0].score([[1, 2]])
        await transfer.publish(learner, engines)
        assert await engines[0].version() == 1
        assert all(np.array_equal(table, OLD + NEW) for table in tables(place))

    asyncio.run(run())
