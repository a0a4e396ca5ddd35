"""Runs in this process whose learner is lost: it starts again, and the run ends as if nothing had happened."""

import asyncio
import gc
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minidist.cluster.cluster import Cluster
from minidist.cluster.supervision import NoRoomError
from minidist.config import DistillConfig, SftConfig
from minidist.errors import ActorLostError, ClusterLostError, DiskFullError, RoleError
from minidist.learners.learner import LocalLearner
from minidist.rollout.hf import HFEngine
from minidist.run.accounting import PREFIXES
from minidist.stages import run_stage
from tests.support.tiny import save_pair

Config = DistillConfig | SftConfig


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recovery")
    save_pair(root)
    (root / "rows.jsonl").write_text("".join(json.dumps({"q": f"{n}+=", "a": str(n)}) + "\n" for n in range(40)))
    return root


def config(home: Path, name: str, **sections: Any) -> DistillConfig:
    source = {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}"}
    tree: dict[str, Any] = {
        "stage": "distill",
        "run": {"directory": str(home / name), "steps": 6, "deterministic": True, "checkpoint_every": 2},
        "student": {"model": str(home / "student")},
        "teacher": {"model": str(home / "teacher")},
        "data": {"prompts": source, "validation": source, "max_prompt_tokens": 8},
        "objective": {"type": "reverse_kl"},
        "rollout": {"engine": "hf", "prompts_per_step": 4, "max_new_tokens": 6},
        "learner": {"backend": "single", "optimizer": {"lr": 1e-2}},
        "evaluation": {"every": 3},
        "cluster": {"roles": "local", "threads": 1},
    }
    tree |= {key: tree.get(key, {}) | section for key, section in sections.items()}
    return DistillConfig.model_validate(tree)


def supervised(home: Path, name: str) -> SftConfig:
    source = {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}"}
    return SftConfig.model_validate(
        {
            "stage": "sft",
            "run": {"directory": str(home / name), "steps": 6, "deterministic": True, "checkpoint_every": 2},
            "student": {"model": str(home / "student")},
            "data": {"train": source, "validation": source, "max_tokens": 16},
            "learner": {"backend": "single", "optimizer": {"lr": 1e-2}},
            "evaluation": {"every": 1, "patience": 9},
            "cluster": {"roles": "local", "threads": 1},
        }
    )


class Losses:
    """Loses an actor at calls of a verb of its role, counted over the whole process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, verb: str, calls: set[int], error: RoleError) -> None:
        self.calls, self.made = 0, 0
        whole, engines = getattr(LocalLearner, verb), HFEngine.__init__

        async def call(learner: Any, *arguments: Any) -> Any:
            self.calls += 1
            if self.calls in calls:
                raise error
            return await whole(learner, *arguments)

        def made(engine: Any, *arguments: Any, **options: Any) -> None:
            self.made += 1
            engines(engine, *arguments, **options)

        monkeypatch.setattr(LocalLearner, verb, call)
        monkeypatch.setattr(HFEngine, "__init__", made)


def learner_lost() -> ActorLostError:
    return ActorLostError("the learner died in update: killed", "learner")


def outcome(settings: Config) -> tuple[list[dict[str, Any]], bytes, dict[str, Any]]:
    """Numbers of all steps, final weights and summary of a run."""
    summary = asyncio.run(run_stage(settings))
    path = settings.run.directory
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    numbers = [{name: value for name, value in line.items() if not name.startswith(PREFIXES)} for line in lines]
    return numbers, (path / "final" / "model.safetensors").read_bytes(), summary


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ahead": {"loop": {"max_staleness": 2}},
    "replay": {"prefix": {"student": 0.5, "dataset": 0.5, "per": "step", "replay": {"capacity": 8}}, "run": {"steps": 12}},
    "no checkpoint": {"run": {"checkpoint_every": None}},
}


@pytest.mark.parametrize(
    ("kind", "verb", "calls"),
    [
        ("plain", "update", {2, 5}),
        ("plain", "weights", {2, 5}),
        ("plain", "save_state", {2}),
        ("ahead", "update", {2, 5}),
        ("replay", "update", {9, 12}),
        ("no checkpoint", "update", {2, 5}),
    ],
)
def test_a_lost_learner_starts_again_and_the_run_repeats_an_undisturbed_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, kind: str, verb: str, calls: set[int]
) -> None:
    made = [config(home, f"{kind}-{verb}-{which}", **KINDS[kind]) for which in ("whole", "lost")]
    numbers, weights, summary = outcome(made[0])
    assert "supervision" not in summary and (kind != "replay" or any(line.get("replay/kept") for line in numbers))
    losses = Losses(monkeypatch, verb, calls, learner_lost())
    found = outcome(made[1])
    assert found[0] == numbers and found[1] == weights
    assert losses.made == 1, "the engine stays"
    assert (
        found[2]["supervision"]["restarts"] == {"learner": len(calls)} and found[2]["syncs_proved"] == summary["syncs_proved"]
    )
    log = (made[1].run.directory / "log.txt").read_text()
    assert "the learner died in update: killed; the learner starts again, and the run goes on from its" in log


def test_a_lost_learner_of_supervised_training_starts_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, weights, _ = outcome(supervised(home, "sft-whole"))
    Losses(monkeypatch, "update", {4}, learner_lost())
    found = outcome(supervised(home, "sft-lost"))
    assert found[0] == numbers and found[1] == weights and found[2]["supervision"]["restarts"] == {"learner": 1}


def test_a_learner_that_is_lost_again_and_again_ends_the_run_with_a_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(home, "always", cluster={"supervision": {"restarts": 2}})
    losses = Losses(monkeypatch, "update", set(range(4, 100)), learner_lost())
    found = r"the learner died in update: killed; learner was started again 2 times without a checkpoint in between \("
    with pytest.raises(ActorLostError, match=found):
        asyncio.run(run_stage(settings))
    assert losses.calls == 6, "two steps before the checkpoint, one after it, and three attempts"


def test_a_new_checkpoint_between_two_losses_allows_as_many_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(home, "progress", cluster={"supervision": {"restarts": 1}})
    Losses(monkeypatch, "update", {2, 5, 8}, learner_lost())
    assert outcome(settings)[2]["supervision"]["restarts"] == {"learner": 3}


@pytest.mark.parametrize(
    ("error", "supervision"),
    [
        (learner_lost(), {"enabled": False}),
        (RoleError("the learner failed"), {}),
        (ActorLostError("died", "rollout 1"), {}),
        (NoRoomError("no room for the learner", "learner"), {}),
    ],
    ids=["unsupervised", "failed", "an engine", "no room"],
)
def test_other_errors_end_the_run_as_they_are(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: RoleError, supervision: dict[str, Any]
) -> None:
    name = f"other-{type(error).__name__}-{bool(supervision)}-{error}"
    settings = config(home, name, cluster={"supervision": supervision})
    losses = Losses(monkeypatch, "update", {3}, error)
    with pytest.raises(RoleError) as caught:
        asyncio.run(run_stage(settings))
    assert caught.value is error and losses.calls == 3


def count_clusters(monkeypatch: pytest.MonkeyPatch) -> list[Cluster]:
    """The clusters that are entered from now on."""
    clusters = list[Cluster]()
    enter = Cluster.__aenter__

    async def entered(self: Cluster) -> Cluster:
        clusters.append(self)
        return await enter(self)

    monkeypatch.setattr(Cluster, "__aenter__", entered)
    return clusters


def test_a_lost_cluster_of_this_run_starts_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, clusters = outcome(config(home, "cluster-whole")), count_clusters(monkeypatch)
    Losses(monkeypatch, "update", {4}, ClusterLostError("Ray's node (raylet) has died"))
    found = outcome(config(home, "cluster-lost"))
    assert found[:2] == whole[:2] and found[2]["supervision"] == {"restarts": {"Ray": 1}} and len(clusters) == 2


@pytest.mark.parametrize(
    ("cluster", "remedy"),
    [
        ({"address": "127.0.0.1:6379"}, "start that cluster again, and give the same command again"),
        ({"supervision": {"enabled": False}}, "give the same command again"),
    ],
    ids=["joined", "unsupervised"],
)
def test_another_lost_cluster_ends_the_run_with_a_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], remedy: str
) -> None:
    clusters = count_clusters(monkeypatch)
    Losses(monkeypatch, "update", {4}, ClusterLostError("Ray's node (raylet) has died"))
    with pytest.raises(ClusterLostError, match=rf"raylet\) has died; {remedy}: it goes on from the last checkpoint"):
        asyncio.run(run_stage(config(home, f"ended-{len(cluster)}-{remedy[:4]}", cluster=cluster)))
    assert len(clusters) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB, for which this process must be root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=False).returncode:
        pytest.skip("a file system can only be mounted by root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_fills_leaves_the_last_checkpoint_and_the_run_resumes_once_there_is_room(
    home: Path, small_disk: Path
) -> None:
    settings = config(home, "disk", run={"directory": str(small_disk / "run"), "tensorboard": False})
    other = small_disk / "other"
    other.write_bytes(bytes(1 << 20))  # of someone else, such as an older run
    with pytest.raises(DiskFullError, match=r"disk/run/\S* could not be written: No space left on device; free space"):
        asyncio.run(run_stage(settings))
    kept = [path.name for path in sorted((small_disk / "run" / "checkpoints").iterdir())]
    assert kept and all(name.startswith("step_") for name in kept), "and no half one"
    other.unlink()
    gc.collect()  # the failed run's lock
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    found = outcome(settings)
    assert f"resuming from {small_disk}/run/checkpoints/{kept[-1]}" in (small_disk / "run" / "log.txt").read_text()
    assert found[:2] == outcome(config(home, "disk-whole", run={"tensorboard": False}))[:2]
