"""Roles that stay warm: what is started once, what is made anew in its processes, and what is ended."""

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minidist.config import DistillConfig
from minidist.roles import warm
from minidist.roles.host import Roles
from minidist.roles.make import LearnerSetup
from minidist.roles.warm import WarmRoles, same_architecture
from tests.support.tiny import tiny_model, tiny_renderer

CONFIG = DistillConfig.model_validate(
    {
        "stage": "distill",
        "run": {"directory": "runs/warm", "steps": 5, "seed": 3},
        "student": {"model": "student"},
        "teacher": {"model": "teacher"},
        "data": {"prompts": {"path": "task:sort"}},
        "objective": {"type": "reverse_kl"},
        "rollout": {"engine": "hf"},
        "cluster": {"rollout": {"actors": 2}},
    }
)
PLAN: Any = SimpleNamespace(renderer=tiny_renderer(), vocabulary=13, max_tokens=48, longest=48, cache=None)


class Held:
    """A role in a process; it remembers the weights it loaded."""

    def __init__(self, process: int, arguments: dict[str, Any]) -> None:
        self.process, self.arguments = process, arguments
        self.loaded: list[Path] = []

    async def load(self, path: Path) -> None:
        self.loaded.append(path)


class FakeCluster:
    """Numbers its processes; a restart makes another role in the same process."""

    def __init__(self) -> None:
        self.processes = 0
        self.ended: list[int] = []

    async def host(self, role: str, make: Any, **arguments: Any) -> Held:
        self.processes += 1
        return Held(self.processes, arguments)

    async def host_group(self, role: str, make: Any, count: int, **arguments: Any) -> list[Held]:
        return [await self.host(role, make, **arguments) for _ in range(count)]

    def supervise(self, actors: Sequence[Held], make: Any, arguments: dict[str, Any]) -> Held:
        return actors[0]

    async def restart(self, members: Sequence[Held], make: Any, **arguments: Any) -> list[Held]:
        return [Held(member.process, arguments) for member in members]

    async def dismiss(self, role: Held) -> None:
        self.ended.append(role.process)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def roles(cluster: FakeCluster) -> WarmRoles:
    fake: Any = cluster
    return WarmRoles(Roles(fake, CONFIG, PLAN, mixing=True), teacher=CONFIG.teacher)


def run(call: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(call)


def learner(roles: WarmRoles, **options: Any) -> Any:
    objectives: Any = {"main": {"type": "reverse_kl"}}
    return run(roles.learner(LearnerSetup(CONFIG.student, CONFIG.learner, objectives, **options)))


def processes(engines: Any) -> list[int]:
    return [member.process for member in engines.members]


def test_engines_and_teachers_start_once(roles: WarmRoles, cluster: FakeCluster) -> None:
    engines, teachers = (run(roles.engines(CONFIG.student, CONFIG.rollout)), run(roles.teachers(CONFIG.teacher)))
    assert run(roles.engines(CONFIG.student, CONFIG.rollout)) is engines
    assert run(roles.warm_engines(CONFIG.student, CONFIG.rollout)) is engines
    assert run(roles.teachers(CONFIG.teacher)) is teachers and cluster.processes == 3
    assert teachers.members[0].arguments["mixing"], "some run takes turns"
    assert all(engine.arguments["context"].turns for engine in engines.members)


def test_lockstep_engines_are_made_anew_in_their_processes_and_stay_until_a_run_writes_alone(roles: WarmRoles) -> None:
    alone = run(roles.engines(CONFIG.student, CONFIG.rollout))
    mixed = run(roles.engines(CONFIG.student, CONFIG.rollout, teacher=CONFIG.teacher))
    assert processes(mixed) == processes(alone) and mixed.members[0].arguments["teacher"] is CONFIG.teacher
    assert run(roles.engines(CONFIG.student, CONFIG.rollout, teacher=CONFIG.teacher)) is mixed
    assert run(roles.warm_engines(CONFIG.student, CONFIG.rollout)) is mixed
    again = run(roles.engines(CONFIG.student, CONFIG.rollout))
    assert processes(again) == processes(alone) and again.members[0].arguments["teacher"] is None


def test_each_learner_is_made_for_its_run_in_the_same_process_with_the_teachers_head(roles: WarmRoles) -> None:
    first = learner(roles)
    other = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"seed": 8, "steps": 7})})
    roles.serve(other, PLAN)
    second = learner(roles)
    assert second is not first and second.process == first.process and roles.warm_learner is second
    assert [(each.arguments["context"].seed, each.arguments["context"].steps) for each in (first, second)] == [(3, 5), (8, 7)]
    assert second.arguments["teacher"] is CONFIG.teacher
    assert run(roles.engines(CONFIG.student, CONFIG.rollout)).members[0].arguments["context"].seed == 3


def test_a_student_takes_the_place_of_another_by_its_weights_where_the_architecture_is_the_same(
    roles: WarmRoles, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "same_architecture", lambda left, right: left.name[0] == right.name[0])

    async def start(path: Path) -> tuple[Any, Any]:
        engines = await roles.engines(CONFIG.student, CONFIG.rollout)
        return engines, await roles.learner(LearnerSetup(CONFIG.student, CONFIG.learner, {}))

    small, smaller, large = Path("s1"), Path("s2"), Path("l1")
    engines, held = run(roles.student(small, start))
    assert run(roles.student(small, start)) == (engines, held) and held.loaded == []
    assert run(roles.student(smaller, start)) == (engines, held) and roles.path == smaller
    assert held.loaded == [smaller] and all(member.loaded == [smaller] for member in engines.members)
    others, other = run(roles.student(large, start))
    assert sorted(cluster.ended) == sorted([*processes(engines), held.process])
    assert other.process not in cluster.ended and not set(processes(others)) & set(cluster.ended)


def test_two_checkpoints_that_differ_in_their_weights_alone_have_the_same_architecture(tmp_path: Path) -> None:
    for name, fields in (("a", {"seed": 0}), ("b", {"seed": 1}), ("c", {"hidden_size": 32})):
        tiny_model(**fields).save_pretrained(tmp_path / name)
    assert same_architecture(tmp_path / "a", tmp_path / "b")
    assert not same_architecture(tmp_path / "a", tmp_path / "c")
