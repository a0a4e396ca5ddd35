"""CPUs and GPUs of each actor, machines that are too small for a configuration, and how many roles start at once."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minidist.cluster import actors, cluster, machine
from minidist.cluster.actors import Actors
from minidist.cluster.cluster import Cluster
from minidist.cluster.machine import actor_cpus
from minidist.concurrency import together
from minidist.config.cluster import ClusterConfig, Role
from tests.support.collecting import distill_config

CORES = 8
ROLES: tuple[Role, ...] = ("rollout", "teacher", "learner")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (actors, machine):
        monkeypatch.setattr(module, "cores", lambda: CORES)


def cpus(**fields: Any) -> dict[str, float]:
    config = ClusterConfig(**fields)
    return {role: actor_cpus(config, config.role(role)) for role in ROLES}


def counts(config: ClusterConfig) -> dict[str, int]:
    return {role: config.role(role).processes for role in ROLES}


SOME: list[dict[str, Any]] = [
    {},
    {"rollout": {"actors": 2}, "learner": {"ranks": 4}},
    {"rollout": {"actors": 300}},
    {"learner": {"cpus": 6.5}},
    {"learner": {"cpus": 2, "ranks": 3}, "teacher": {"cpus": 0.25, "actors": 2}, "rollout": {"actors": 7}},
    {"learner": {"cpus": 6}, "teacher": {"cpus": 1}, "rollout": {"cpus": 1}},
]


@pytest.mark.parametrize("fields", SOME, ids=str)
def test_shares_fit_the_machine_and_use_it(fields: dict[str, Any]) -> None:
    config, given = ClusterConfig(**fields), cpus(**fields)
    total = sum(given[role] * count for role, count in counts(config).items())
    assert total <= CORES + 1e-9
    assert total > CORES - 0.01 * config.processes - 1e-9, "rounded down to hundredths, and no more"
    for role in ROLES:
        assert given[role] == (getattr(config, role).cpus or given[role])


def test_actors_without_cpus_get_equal_shares() -> None:
    assert cpus() == dict.fromkeys(ROLES, 2.66)
    assert cpus(learner={"cpus": 7}) == {"rollout": 0.5, "teacher": 0.5, "learner": 7}
    assert cpus(address="auto", learner={"cpus": 3}) == {"rollout": 1.0, "teacher": 1.0, "learner": 3}


def gpus(**fields: Any) -> tuple[float, ...]:
    config = ClusterConfig(**fields)
    return tuple(config.gpus_of(getattr(config, role)) for role in ROLES)


def test_actors_get_whole_gpus_where_there_are_enough_else_equal_shares() -> None:
    assert gpus(gpus=0) == (0, 0, 0)
    assert gpus(gpus=3) == (1, 1, 1)
    assert gpus(gpus=4, rollout={"tensor_parallel": 2}) == (2, 1, 1)
    assert gpus(gpus=8, rollout={"tensor_parallel": 2, "actors": 2}) == (2, 1, 1)
    assert gpus(gpus=2) == (0.5, 0.5, 0.5)
    assert gpus(gpus=1) == (0.33, 0.33, 0.33)
    assert gpus(gpus=2, rollout={"actors": 4}, learner={"ranks": 2}) == (0.25, 0.25, 0.25)
    assert gpus(gpus=1, learner={"gpus": 0.6}, teacher={"gpus": 0}) == (0.4, 0, 0.6)
    assert gpus(gpus=1, teacher={"gpus": 0.5}) == (0.25, 0.5, 0.25)
    assert gpus(gpus=2, learner={"gpus": 1}) == (0.5, 0.5, 1)
    assert gpus(gpus=3, learner={"gpus": 1}) == (1, 1, 1)


def homes(roles: Sequence[Role], **fields: Any) -> list[int]:
    config = ClusterConfig(**fields)
    config.host(roles)
    return Actors(config, roles).homes


def test_only_the_roles_of_the_run_share_the_gpus() -> None:
    """Eight ranks of a supervised run on eight devices, and a teacher that is read from a cache."""
    config = ClusterConfig.model_validate({"gpus": 8, "learner": {"ranks": 8}})
    config.host(["learner"])
    assert config.gpus_of(config.learner) == 1
    config.host(ROLES)
    assert config.gpus_of(config.learner) == 0.5
    config = ClusterConfig.model_validate({"gpus": 2, "rollout": {"tensor_parallel": 2}})
    config.host(["rollout"])
    assert config.gpus_of(config.rollout) == 2
    with pytest.raises(ValueError, match=r"too few for whole devices, and each actor of cluster\.rollout needs 2"):
        config.host(ROLES)


def test_actors_that_share_devices_are_dealt_to_them_and_ranks_never_meet() -> None:
    assert homes(ROLES, gpus=3) == [0, 1, 2]
    assert homes(ROLES, gpus=1) == [0, 0, 0]
    assert homes(ROLES, gpus=2, learner={"ranks": 2}) == [0, 1, 0, 1]
    assert homes(ROLES, gpus=2, teacher={"shards": 2}, learner={"ranks": 2}) == [0, 1, 0, 1, 0]
    assert homes(ROLES, gpus=3, learner={"ranks": 3}) == [0, 1, 2, 0, 1]
    assert homes(ROLES, gpus=2, teacher={"gpus": 0}, learner={"ranks": 2}) == [0, 2, 1, 0]
    assert homes(ROLES, gpus=2, learner={"gpus": 1}) == [0, 0, 1]
    assert homes(ROLES) == [0, 1, 2]


OWN: list[dict[str, Any]] = [{}, {"gpus": 0}, {"gpus": 0.3}, {"gpus": 0.6}, {"gpus": 1}, {"gpus": 2}]
"""What a role may claim for itself."""


@pytest.mark.parametrize("gpus", [1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("learner", OWN, ids=str)
@pytest.mark.parametrize("teacher", OWN, ids=str)
def test_a_run_reserves_no_more_gpus_than_it_has(
    gpus: int, ranks: int, learner: dict[str, Any], teacher: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: list[dict[str, float]] = []
    group = SimpleNamespace(wait=lambda seconds: True)
    monkeypatch.setattr(actors, "placement_group", lambda bundles, strategy: (reserved.extend(bundles), group)[1])
    try:
        config = ClusterConfig.model_validate({"gpus": gpus, "learner": {"ranks": ranks} | learner, "teacher": teacher})
        config.host(ROLES)
    except ValueError as error:
        assert "may not share a device" in str(error) or "leaves none" in str(error)
        return
    Actors(config, ROLES)._reserve()
    assert sum(bundle.get("GPU", 0) for bundle in reserved) <= gpus + 1e-9


def test_a_model_over_several_nodes_has_a_placement_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one bundle a device, the first of them with room for the actor, which takes no device itself."""
    asked: list[tuple[list[dict[str, float]], str]] = []
    monkeypatch.setattr(actors, "placement_group", lambda bundles, strategy: _Group(asked, bundles, strategy))
    seats: list[dict[str, Any]] = []
    monkeypatch.setattr(actors, "ray", SimpleNamespace(remote=lambda **groups: lambda kind: _Seat(seats)))
    monkeypatch.setattr(
        actors,
        "PlacementGroupSchedulingStrategy",
        lambda group, placement_group_bundle_index: (group.number, placement_group_bundle_index),
    )
    fields = {"pipeline_parallel": 2, "tensor_parallel": 2, "across_nodes": True}
    config = ClusterConfig.model_validate(
        {"address": "auto", "gpus": 12, "placement": "spread", "teacher": fields | {"actors": 2}, "learner": {"ranks": 2}}
    )
    config.host(ROLES)
    made = Actors(config, ROLES)
    made._reserve()
    one, engine = {"CPU": 1.0, "GPU": 1.0}, ([{"CPU": 1.0, "GPU": 1}, {"GPU": 1}, {"GPU": 1}, {"GPU": 1}], "PACK")
    assert asked == [engine, engine, ([one, one, one], "SPREAD")]
    for role in made.bundles:
        made.seat(role)
    found = [(seat["num_gpus"], *seat["scheduling_strategy"]) for seat in seats]
    assert found == [(1.0, 2, 0), (0, 0, 0), (0, 1, 0), (1.0, 2, 1), (1.0, 2, 2)]


class _Group:
    """A placement group that is ready, with its number among those asked for."""

    def __init__(self, asked: list[Any], bundles: list[dict[str, float]], strategy: str) -> None:
        self.number = len(asked)
        asked.append((bundles, strategy))

    def wait(self, seconds: float) -> bool:
        return True


class _Seat:
    """What ray.remote gives; records the options of an actor."""

    def __init__(self, seats: list[dict[str, Any]]) -> None:
        self._seats = seats

    def options(self, **options: Any) -> "_Seat":
        self._seats.append(options)
        return self

    def remote(self, *arguments: Any) -> "_Seat":
        return self


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("actors", [1, 2, 5])
def test_ranks_of_a_group_have_devices_of_their_own(gpus: int, ranks: int, actors: int) -> None:
    fields: dict[str, Any] = {"gpus": gpus, "rollout": {"actors": actors}, "learner": {"ranks": ranks}}
    config = ClusterConfig(**fields)
    if ranks > gpus:
        with pytest.raises(ValueError, match=rf"{ranks} processes of cluster.learner may not share a device; raise .* {ranks}"):
            config.host(ROLES)
        return
    config.host(ROLES)
    actors_of_run = Actors(config, ROLES)
    places = [home for home, role in zip(actors_of_run.homes, actors_of_run.bundles, strict=True) if role == "learner"]
    assert len(set(places)) == ranks
    load = max(actors_of_run.homes.count(home) for home in actors_of_run.homes)
    assert load * config.gpus_of(config.learner) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("actors", [1, 2, 3, 7])
def test_shares_of_a_gpu_fit_it(count: int, actors: int) -> None:
    """As Ray seats them: as many on a device as fit."""
    config = ClusterConfig(gpus=count, rollout={"actors": actors}, learner={"ranks": 2})  # type: ignore[arg-type]
    share = config.gpus_of(config.rollout)
    assert int(1 / share + 1e-9) * count >= config.processes


def test_only_the_roles_of_the_run_get_bundles() -> None:
    config = ClusterConfig(rollout={"actors": 2}, learner={"ranks": 3})  # type: ignore[arg-type]
    assert Actors(config, ROLES).bundles == ["rollout", "rollout", "teacher", "learner", "learner", "learner"]
    assert Actors(config, ["learner"]).bundles == ["learner"] * 3


def test_every_shard_of_a_teacher_gets_a_bundle() -> None:
    sharded = ClusterConfig.model_validate({"teacher": {"actors": 2, "shards": 3}})
    assert Actors(sharded, ["teacher"]).bundles == ["teacher"] * 6
    split = ClusterConfig.model_validate({"gpus": 10, "teacher": {"actors": 2, "tensor_parallel": 4}})
    assert Actors(split, ["teacher"]).bundles == ["teacher"] * 2
    assert split.gpus_of(split.teacher) == 4  # one process that holds four devices


@pytest.mark.parametrize(
    ("loop", "fields", "threads"),
    [
        ({}, {}, (8, 8, 8)),
        ({}, {"rollout": {"actors": 2}}, (4, 8, 8)),
        ({"max_staleness": 1}, {}, (4, 4, 4)),
        ({"stream": True}, {"rollout": {"actors": 2}}, (2, 4, 8)),
        ({"max_staleness": 2, "stream": True}, {}, (2, 2, 2)),
        ({"max_staleness": 1}, {"threads": 3}, (3, 3, 3)),
        ({"max_staleness": 1}, {"rollout": {"actors": 5}}, (1, 4, 4)),
    ],
    ids=str,
)
def test_roles_that_work_at_the_same_time_share_the_cores(
    loop: dict[str, Any], fields: dict[str, Any], threads: tuple[int, ...], tmp_path: Path
) -> None:
    config = distill_config(loop=loop, cluster=fields)
    made = Actors(config.cluster, ROLES, config.roles_at_once)
    made._scratch = tmp_path
    assert tuple(int(made._environment(role)["OMP_NUM_THREADS"]) for role in ROLES) == threads


@pytest.mark.parametrize(("fields", "most"), [({}, 2), ({"address": "auto"}, 3)], ids=str)
def test_no_more_roles_start_at_once_than_there_are_cores(
    fields: dict[str, Any], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    at_once: list[int] = []

    async def start(role: Role, ended: list[str]) -> None:
        begun.append(role)
        at_once.append(len(begun) - len(ended))
        await asyncio.sleep(0.01)
        ended.append(role)

    async def run() -> None:
        ended: list[str] = []
        hosting: Any = Cluster(ClusterConfig(**fields), tmp_path, ROLES)
        hosting.actors = SimpleNamespace(
            seat=lambda role: SimpleNamespace(start=lambda make: start(role, ended), beat=lambda: asyncio.sleep(0))
        )
        hosting._scratch = SimpleNamespace(guard=lambda: None)
        await together(hosting.host(role, dict) for role in ROLES)

    monkeypatch.setattr(cluster, "cores", lambda: 2)
    asyncio.run(run())
    assert begun == list(ROLES) and max(at_once) == most


def test_roles_are_apart_on_devices_of_their_own() -> None:
    def apart(**fields: Any) -> bool:
        config = ClusterConfig.model_validate(fields)
        config.host(ROLES)
        return config.apart("rollout", "teacher")

    assert not apart(), "both on the cores of the machine"
    assert apart(gpus=3)
    assert not apart(gpus=1), "both on one device"
    assert apart(gpus=2, teacher={"gpus": 0})
    assert not apart(gpus=1, rollout={"gpus": 0}, teacher={"gpus": 0})


def test_an_actor_that_is_lost_again_as_it_starts_is_seated_again_in_its_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Any] = []

    class Alive:
        """Ray's handle of an actor that gives a sign of life."""

        def __init__(self, options: dict[str, Any]) -> None:
            self.place = options["scheduling_strategy"]
            self.beat = SimpleNamespace(remote=self._beat)

        async def _beat(self) -> None: ...

    def actor_class(**groups: Any) -> Any:
        return lambda kind: SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *_: Alive(options)))

    async def kill(actor: Any) -> None:
        killed.append(actor)

    monkeypatch.setattr(actors, "ray", SimpleNamespace(remote=actor_class))
    monkeypatch.setattr(actors, "kill", kill)
    monkeypatch.setattr(actors, "placement_group", lambda bundles, strategy: _Group([], bundles, strategy))
    monkeypatch.setattr(
        actors, "PlacementGroupSchedulingStrategy", lambda group, placement_group_bundle_index: placement_group_bundle_index
    )
    config = ClusterConfig.model_validate({"rollout": {"actors": 3}})
    made = Actors(config, ROLES)
    made._scratch = tmp_path
    made._reserve()
    first = [made.seat("rollout") for _ in range(3)]

    async def run() -> None:
        second = await made.reseat(first[1])
        third = await made.reseat(first[1])
        assert killed == [first[1], second] and made.seated == [first[0], third, first[2]]
        assert (third.name, third.actor.place, third.keeper) == ("rollout 1", first[1].actor.place, "rollout 1, life 3")
        assert made.role_of(third) == "rollout"

    asyncio.run(run())


def test_ray_lives_in_a_closed_directory_and_its_token_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    given: dict[str, Any] = {}
    monkeypatch.setattr(actors.ray, "init", lambda **settings: given.update(settings))
    made = Actors(ClusterConfig(), ROLES)
    monkeypatch.setattr(made, "_reserve", lambda: None)
    made.start(tmp_path / "scratch", tmp_path / "run")
    assert given["_temp_dir"] == str(tmp_path / "scratch" / "ray")
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
