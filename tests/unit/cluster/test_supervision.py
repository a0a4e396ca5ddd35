"""A role whose process dies is started again, with its weights, and what it owes is done whole, once."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from minidist.cluster.supervision import NoRoomError, Restarts
from minidist.errors import ActorLostError, CanaryError, RoleError
from tests.support.mortal import Place


class Counting:
    """Counts with the number that was loaded."""

    def __init__(self, step: int = 1) -> None:
        self.step, self.done = step, list[int]()

    async def load(self, step: int) -> None:
        self.step = step

    async def count(self, number: int) -> int:
        self.done.append(number)
        return number * self.step

    async def take_turns(self, number: int) -> int:
        return number

    async def fail(self) -> None:
        raise RoleError("no room on the device")

    async def stream(self, numbers: list[int]) -> AsyncGenerator[tuple[int, int], None]:
        for index, number in enumerate(numbers):
            await asyncio.sleep(0)
            self.done.append(number)
            yield index, number * self.step


def test_a_call_that_a_death_left_without_an_answer_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        place = Place()
        role = place.supervise("rollout 1", Counting, step=3)
        place.started[0].dies_in = "count"
        with caplog.at_level(logging.WARNING, "minidist"):
            assert await role.count(4) == 12
        assert [process.role.done for process in place.started] == [[4], [4]]
        assert await role.count(5) == 15 and len(place.started) == 2
        assert place.restarts.summary() == {"supervision": {"restarts": {"rollout 1": 1}}}

    asyncio.run(run())
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("the rollout 1 was started again in 0.") and line.endswith("s; cause: the rollout 1 died")


def test_a_stream_that_a_death_cut_short_yields_each_answer_once_and_is_asked_whole_again() -> None:
    async def run() -> None:
        place = Place()
        role = place.supervise("rollout", Counting)
        place.started[0].dies_in = "stream"
        assert [each async for each in role.stream([7, 8, 9])] == [(0, 7), (1, 8), (2, 9)]
        assert place.started[0].role.done == [7, 8] and place.started[1].role.done == [7, 8, 9]

    asyncio.run(run())


def test_a_role_that_was_made_anew_gets_the_weights_loaded_last_before_it_works() -> None:
    async def run() -> None:
        place = Place()
        role = place.supervise("rollout", Counting)
        await role.load(5)
        place.started[0].die()
        assert await role.count(2) == 10
        assert place.started[1].calls == ["load", "count"]
        place.started[1].dies_in = "load"
        await role.load(6)
        assert await role.count(2) == 12 and len(place.started) == 3

    asyncio.run(run())


def test_a_role_whose_weights_are_gone_does_not_work_until_others_are_loaded() -> None:
    async def gone(role: Any) -> bool:
        return False

    async def wrong(role: Any) -> bool:
        raise CanaryError("they differ by 3 nats")

    async def run() -> None:
        place = Place()
        role = place.supervise("rollout", Counting)
        await role.claim(gone)
        place.started[0].die()
        with pytest.raises(ActorLostError, match="the rollout was started again, and the weights published last are no longer"):
            await role.count(2)
        assert not role.ready
        await role.load(2)
        assert role.ready and await role.count(2) == 4
        await role.claim(wrong)
        place.started[1].die()
        with pytest.raises(ActorLostError, match="did not take its weights: they differ by 3 nats"):
            await role.count(2)

    asyncio.run(run())


def test_weights_that_were_replaced_meanwhile_are_not_given_to_a_role_that_starts() -> None:
    """A renewal that began with old weights is followed by one with those of the next publication."""

    async def run() -> None:
        place = Place()
        role = place.supervise("rollout", Counting)
        renewing = asyncio.Event()

        async def old(made: Any) -> bool:
            renewing.set()
            await asyncio.sleep(0.02)
            await made.load(10)
            return True

        async def new(made: Any) -> bool:
            await made.load(20)
            return True

        await role.claim(old)
        place.started[0].die()
        assert not role.ready
        await renewing.wait()
        await role.claim(new)
        assert role.ready and await role.count(1) == 20

    asyncio.run(run())


def test_a_role_that_dies_too_often_ends_the_run_with_its_cause() -> None:
    async def run() -> None:
        place = Place(restarts=2)
        role = place.supervise("teacher", Counting)
        place.stillborn = 1
        place.started[0].die()
        assert await role.count(1) == 1, "lost as it started, and again"
        place.started[1].die()
        expected = r"the teacher was lost 3 times, and cluster.supervision.restarts is 2; its last loss: the teacher died"
        for _ in range(2):
            with pytest.raises(ActorLostError, match=expected):
                await role.count(1)
        assert len(place.started) == 2

    asyncio.run(run())


def test_what_goes_on_from_earlier_calls_is_never_made_again_in_another_process() -> None:
    async def run() -> None:
        place = Place()
        role = place.supervise("rollout", Counting)
        place.started[0].dies_in = "take_turns"
        with pytest.raises(ActorLostError, match="the rollout died"):
            await role.take_turns(1)
        assert await role.count(1) == 1 and place.started[1].calls == ["count"]

    asyncio.run(run())


def test_an_error_of_a_living_role_is_its_own() -> None:
    async def run() -> None:
        place = Place()
        role = place.supervise("rollout", Counting)
        with pytest.raises(RoleError, match="no room on the device"):
            await role.fail()
        assert len(place.started) == 1
        with pytest.raises(AttributeError):
            _ = role.keep_scores

    asyncio.run(run())


def test_another_role_in_the_same_process_is_the_one_that_is_made_again() -> None:
    async def run() -> None:
        place = Place()
        role = place.supervise("rollout", Counting, step=1)
        await role.load(9)
        await role.start(Counting, step=4)
        place.started[0].die()
        assert await role.count(1) == 4

    asyncio.run(run())


def test_figures_name_restarts_once_and_the_actors_that_are_left() -> None:
    place, restarts = Place(), Restarts(3)
    members = [place.supervise(name, Counting) for name in ("rollout 0", "rollout 1", "rollout 2", "teacher")]
    assert restarts.figures(members) == {} and restarts.summary() == {}
    restarts.add("rollout 2", "it died", 1.0)
    assert restarts.figures(members) == {"cluster/restarts": 1.0}
    members[1].failed = NoRoomError("no room", "rollout 1")
    restarts.give_up("rollout 1", "no room")
    assert restarts.figures(members) == {"cluster/rollout_actors": 2.0}
    assert restarts.summary() == {"supervision": {"restarts": {"rollout 2": 1}, "given_up": ["rollout 1"]}}
