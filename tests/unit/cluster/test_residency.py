"""Roles that hold their devices in turn: on a device that counts its memory and refuses what a real one would."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from minidist.cluster.cluster import Cluster
from minidist.concurrency import together
from minidist.config.cluster import ClusterConfig, Role
from minidist.errors import ActorLostError, RoleError
from minidist.loop import Run, train
from minidist.run.tracking import Clock
from minidist.types import Batch, Update


class Device:
    """Memory of `size`, and all that happens on it, in order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held: dict[str, int] = {}
        self.log: list[str] = []

    def take(self, name: str, amount: int) -> None:
        if sum(self.held.values()) + amount > self.size:
            raise RoleError(f"out of memory: {amount} for {name} beside {self.held}")
        self.held[name] = amount


class OnDevice:
    """A role whose weights take `amount` of the device while it is awake. Computing asleep, or beside another, is an error."""

    def __init__(self, device: Device, name: str, amount: int, seconds: float = 0.0) -> None:
        self.device, self.name, self.amount, self.seconds = device, name, amount, seconds
        device.take(name, amount)

    async def _compute(self, verb: str, result: Any = None) -> Any:
        kind = self.name.split()[0]
        assert {name.split()[0] for name in self.device.held} == {kind}, f"{self.name} computes beside {self.device.held}"
        self.device.log.append(f"{self.name} {verb}")
        await asyncio.sleep(self.seconds)
        assert self.name in self.device.held, f"{self.name} lost its memory while it computed"
        return result

    async def sleep(self) -> None:
        del self.device.held[self.name]
        self.device.log.append(f"{self.name} sleeps")

    async def wake(self) -> None:
        self.device.take(self.name, self.amount)
        self.device.log.append(f"{self.name} wakes")

    async def generate(self) -> None:
        await self._compute("generate")

    async def stream(self) -> AsyncGenerator[int, None]:
        for index in range(2):
            yield await self._compute("stream", index)

    async def score(self) -> None:
        await self._compute("score")

    async def update(self, batch: Batch) -> Update:
        return await self._compute("update", Update(batch.step + 1, {}))

    async def weights(self) -> None:
        await self._compute("weights")

    async def load(self) -> None:
        await self._compute("load")

    async def describe(self) -> str:
        return self.name

    async def close(self) -> None: ...


Scene = Callable[[Cluster, Device], Awaitable[Any]]


def on_one_device(tmp_path: Path, scene: Scene, *, size: int = 10, residency: bool = True) -> list[str]:
    """What happens on a device of `size` in a scene; roles are in this process."""
    device = Device(size)

    async def run() -> None:
        async with Cluster(ClusterConfig(roles="local", residency=residency), tmp_path) as cluster:
            await scene(cluster, device)

    asyncio.run(run())
    return device.log


async def hosted(cluster: Cluster, device: Device, kind: Role, amount: int = 8, **options: Any) -> Any:
    return await cluster.host(kind, OnDevice, device=device, name=options.pop("name", kind), amount=amount, **options)


def test_the_order_of_a_whole_run(tmp_path: Path) -> None:
    """Each role fills the device, and the loop knows nothing of it."""

    class Parts:
        """The source, the transfer and the watch of the loop."""

        def __init__(self, engine: Any, teacher: Any) -> None:
            self.engine, self.teacher = engine, teacher

        async def next(self, step: int) -> Batch:
            await self.engine.generate()
            await self.teacher.score()
            return Batch(step, ((),))

        async def publish(self, learner: Any, engines: Sequence[Any]) -> float:
            await learner.weights()
            await together(engine.load() for engine in engines)
            return 0.0

        async def before_update(self, batch: Batch) -> None: ...

        async def after_step(self, *_: Any) -> bool:
            return False

        async def stopped(self, step: int) -> None: ...

    async def scene(cluster: Cluster, device: Device) -> None:
        engine, teacher, learner = [await hosted(cluster, device, kind) for kind in ("rollout", "teacher", "learner")]
        device.log.clear()  # of the start
        parts: Any = Parts(engine, teacher)
        await train(Run(2, parts, learner, Clock(), parts, [engine], parts))

    change = {
        ("learner", "rollout"): ["learner sleeps", "rollout wakes"],
        ("rollout", "teacher"): ["rollout sleeps", "teacher wakes"],
        ("teacher", "learner"): ["teacher sleeps", "learner wakes"],
    }
    step = ["rollout generate", *change["rollout", "teacher"], "teacher score", *change["teacher", "learner"]]
    step += ["learner update", "learner weights", *change["learner", "rollout"], "rollout load"]
    assert on_one_device(tmp_path, scene) == [*change["learner", "rollout"], *step, *step]


def test_without_residency_the_second_role_finds_no_memory(tmp_path: Path) -> None:
    async def scene(cluster: Cluster, device: Device) -> None:
        await hosted(cluster, device, "rollout")
        await hosted(cluster, device, "teacher")

    with pytest.raises(RoleError, match=r"out of memory: 8 for teacher beside \{'rollout': 8\}"):
        on_one_device(tmp_path, scene, residency=False)


def test_calls_of_two_kinds_at_once_never_meet(tmp_path: Path) -> None:
    async def scene(cluster: Cluster, device: Device) -> None:
        engine, teacher, other = [
            await hosted(cluster, device, *made, seconds=0.001)  # type: ignore[arg-type]
            for made in (("rollout", 8), ("teacher", 4), ("learner", 8))
        ]
        calls = [role for _ in range(4) for role in (engine.generate, teacher.score, other.weights)]
        await together(call() for call in calls)

    log = on_one_device(tmp_path, scene)
    assert len([line for line in log if line.endswith(("generate", "score", "weights"))]) == 12


def test_roles_of_one_kind_are_resident_together(tmp_path: Path) -> None:
    async def scene(cluster: Cluster, device: Device) -> None:
        engines = [await hosted(cluster, device, "rollout", 5, name=f"rollout {index}") for index in range(2)]
        teacher = await hosted(cluster, device, "teacher")
        await together(engine.generate() for engine in engines)
        await teacher.score()
        await cluster.dismiss(engines[0])
        await engines[1].generate()
        assert set(device.held) == {"rollout 1"}

    log = on_one_device(tmp_path, scene)
    assert log.index("rollout 1 wakes") < log.index("rollout 0 generate")


def test_an_engine_keeps_its_devices_while_it_streams(tmp_path: Path) -> None:
    async def scene(cluster: Cluster, device: Device) -> None:
        engine, teacher = await hosted(cluster, device, "rollout"), await hosted(cluster, device, "teacher")
        scoring: list[Any] = []
        async for _ in engine.stream():
            scoring.append(asyncio.ensure_future(teacher.score()))
            await asyncio.sleep(0)
        await asyncio.gather(*scoring)

    log = on_one_device(tmp_path, scene)
    assert log[-5:] == ["rollout stream", "rollout sleeps", "teacher wakes", "teacher score", "teacher score"]


def test_a_role_can_stay_from_one_call_to_the_next(tmp_path: Path) -> None:
    async def scene(cluster: Cluster, device: Device) -> None:
        engine, teacher = await hosted(cluster, device, "rollout"), await hosted(cluster, device, "teacher")
        async with engine.resident():
            scoring = asyncio.ensure_future(teacher.score())
            for _ in range(3):
                await engine.generate()
                await asyncio.sleep(0)
        await scoring

    log = on_one_device(tmp_path, scene)
    assert log[-6:] == [*["rollout generate"] * 3, "rollout sleeps", "teacher wakes", "teacher score"]


def test_a_role_that_is_asleep_is_not_stepped(tmp_path: Path) -> None:
    """A call that goes past the residency, as of another process."""

    async def scene(cluster: Cluster, device: Device) -> None:
        engine, teacher = await hosted(cluster, device, "rollout"), await hosted(cluster, device, "teacher")
        await teacher.score()
        assert await engine.describe() == "rollout", "what needs no device may be asked"
        await engine.role.generate()

    with pytest.raises(RoleError, match="asked for generate while its memory was not on its device"):
        on_one_device(tmp_path, scene)


def test_a_wake_without_memory_is_a_sentence(tmp_path: Path) -> None:
    async def scene(cluster: Cluster, device: Device) -> None:
        engine, teacher = await hosted(cluster, device, "rollout"), await hosted(cluster, device, "teacher")
        await teacher.score()
        device.size = 7  # another process has taken a part of it
        await engine.generate()

    with pytest.raises(RoleError, match=r"no room on the shared devices when the rollout came back .* gpu_memory_utilization"):
        on_one_device(tmp_path, scene)


def test_a_cancelled_call_leaves_the_devices_to_the_next(tmp_path: Path) -> None:
    async def scene(cluster: Cluster, device: Device) -> None:
        engine = await hosted(cluster, device, "rollout", seconds=30.0)
        teacher = await hosted(cluster, device, "teacher")
        writing = asyncio.ensure_future(engine.generate())
        while "rollout generate" not in device.log:
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        await teacher.score()

    assert on_one_device(tmp_path, scene)[-3:] == ["rollout sleeps", "teacher wakes", "teacher score"]


def test_a_dead_role_neither_sleeps_nor_wakes_and_the_others_change_all_the_same(tmp_path: Path) -> None:
    class Dead(OnDevice):
        async def sleep(self) -> None:
            raise ActorLostError("the rollout 1 died", "rollout 1")

        wake = generate = sleep

    async def scene(cluster: Cluster, device: Device) -> None:
        engine = await hosted(cluster, device, "rollout", 4, name="rollout 0")
        dead = await cluster.host("rollout", Dead, device=device, name="rollout 1", amount=4)
        await engine.generate()
        del device.held["rollout 1"]
        teacher = await hosted(cluster, device, "teacher")
        await teacher.score()
        await engine.generate()
        with pytest.raises(ActorLostError, match="the rollout 1 died"):
            await dead.generate()

    log = on_one_device(tmp_path, scene)
    assert log == [
        "rollout 0 generate",
        "rollout 0 sleeps",
        "teacher score",
        "teacher sleeps",
        "rollout 0 wakes",
        "rollout 0 generate",
    ]
