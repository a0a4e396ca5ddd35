"""The order in which the roles of a distillation start."""

import asyncio
from typing import Any, cast

import pytest

from minidist.config import DistillConfig
from minidist.roles.host import Roles, host_roles
from tests.support.collecting import distill_config


class Starts:
    """Stands for `Roles`: each role takes a while to start, the learner the shortest."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def _start(self, role: str, seconds: float) -> Any:
        self.log.append(role)
        await asyncio.sleep(seconds)
        self.log.append(f"{role} ready")
        return role

    async def engines(self, *arguments: Any, **options: Any) -> Any:
        return await self._start("engines", 0.03)

    async def teachers(self, *arguments: Any, **options: Any) -> Any:
        return await self._start("teachers", 0.02)

    async def learner(self, *arguments: Any) -> Any:
        return await self._start("learner", 0.01)


@pytest.mark.parametrize(
    ("gpus", "log"),
    [
        (0, ["learner", "engines", "teachers", "learner ready", "teachers ready", "engines ready"]),
        (3, ["learner", "engines", "teachers", "learner ready", "teachers ready", "engines ready"]),
        (1, ["engines", "engines ready", "teachers", "teachers ready", "learner", "learner ready"]),
        (2, ["engines", "engines ready", "teachers", "teachers ready", "learner", "learner ready"]),
    ],
)
def test_roles_that_share_devices_start_one_after_another(gpus: int, log: list[str]) -> None:
    config: DistillConfig = distill_config(cluster={"gpus": gpus})
    starts = Starts()
    hosted = asyncio.run(host_roles(config, cast(Roles, starts)))
    assert starts.log == log
    assert (hosted.engines, hosted.teachers) == ("engines", "teachers")
