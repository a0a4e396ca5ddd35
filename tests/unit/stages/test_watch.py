"""When a run writes checkpoints."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from minidist.stages.watch import CheckpointWatch


class Watch(CheckpointWatch):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == self.state_dict()


@pytest.mark.parametrize(("every", "written"), [(3, [3, 6, 7]), (1, [1, 2, 3, 4, 5, 6, 7]), (None, []), (8, [7])])
def test_a_checkpoint_is_written_after_every_so_many_steps_and_after_the_last(every: int | None, written: list[int]) -> None:
    found: list[int] = []

    async def write(step: int, learner: Any, state: Any) -> None:
        found.append(step)

    directory = SimpleNamespace(checkpoints=SimpleNamespace(write=write))
    settings = SimpleNamespace(checkpoint_every=every, steps=7, mirror=None, directory=None)
    run: Any = SimpleNamespace(directory=directory, config=SimpleNamespace(run=settings))
    nobody: Any = None
    watch = Watch(run, nobody, nobody)
    for step in range(1, 8):
        asyncio.run(watch.checkpoint(step))
    assert found == written
    asyncio.run(watch.stopped(7))
    assert found == [*written, 7]
