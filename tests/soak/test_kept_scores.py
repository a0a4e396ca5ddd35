"""Slow: 200 MB of hidden states a step on two Ray nodes of one machine, and what of them the driver's process and node hold."""

import asyncio
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster as Nodes
from ray.experimental import get_object_locations

from minidist.cluster.cluster import Cluster
from minidist.cluster.kept import at_hand
from minidist.config.cluster import ClusterConfig, TeacherRoleConfig
from minidist.config.data import RenderConfig
from minidist.config.models import StudentConfig
from minidist.data.batching import collate
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.data.tasks import find
from minidist.roles.make import RoleContext, make_learner, make_teacher
from minidist.teachers.lost import RescoringLearner
from minidist.teachers.pool import Teachers
from minidist.types import Batch, KeptScores
from tests.integration.conftest import SHAPE, save_model, settings
from tests.support.config import objective_config, teacher_config
from tests.support.tiny import random_rollouts

ROWS, PROMPT, ANSWER, WIDTH = 1100, 17, 46, 1024
"""1,100 rows of 46 hidden states of 1,024 float32 numbers are 207 MB."""
MB = 2**20


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster of the driver's node, which has no room for actors."""
    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


def peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Job:
    """A student, a wide teacher, and texts."""

    def __init__(self, folder: Path) -> None:
        wide = SHAPE | {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 32}
        for name, shape, seed in (("student", SHAPE, 1), ("teacher", wide, 2)):
            save_model(folder / name, shape, seed)
        renderer = Renderer(character_tokenizer(find("sort").alphabet), RenderConfig())
        self.student = folder / "student"
        self._context = RoleContext(renderer, max_tokens=PROMPT + ANSWER, steps=100)
        self._teacher = teacher_config(model=str(folder / "teacher"))
        self._texts = random_rollouts([(PROMPT, ANSWER)] * ROWS, vocabulary=len(renderer.tokenizer))

    async def host(self, cluster: Cluster, teachers: int) -> tuple[Teachers, Any]:
        """Teachers and a learner."""
        hosting = [cluster.host("teacher", make_teacher, context=self._context, config=self._teacher) for _ in range(teachers)]
        hosted = [await each for each in hosting]
        learner = await cluster.host(
            "learner",
            make_learner,
            student=StudentConfig(model=str(self.student)),
            teacher=self._teacher,
            config=settings(micro_batch_tokens=1024),
            context=self._context,
            objectives={"main": objective_config("reverse_kl")},
        )
        return Teachers(hosted), learner

    async def scored(self, teachers: Teachers, rows: int) -> Batch:
        """A collection whose scores stay with the teachers."""
        scores = await teachers.score(self._texts[:rows])
        return Batch(0, ((collate("main", self._texts[:rows], scores, objective="main"),),))

    async def updated(self, learner: Any, batch: Batch) -> dict[str, np.ndarray]:
        """The weights after an update of the student as it was."""
        await learner.load(self.student)
        await learner.update(batch)
        return {name: array.copy() for name, array in (await learner.weights()).arrays.items()}


def kept_of(batch: Batch) -> list[KeptScores]:
    return [row.scores for row in batch.steps[0][0].rows if isinstance(row.scores, KeptScores)]


@pytest.mark.timeout(600)
def test_the_driver_never_holds_what_the_learner_learns_from(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add_node(num_cpus=2, object_store_memory=900 * MB)
    job = Job(tmp_path)

    async def run() -> tuple[int, int, set[str], bool]:
        config = ClusterConfig(address=nodes.address, threads=1)
        async with Cluster(config, tmp_path / "logs", ("teacher", "learner")) as cluster:
            teachers, learner = await job.host(cluster, 1)
            await job.updated(learner, await job.scored(teachers, 20))
            before = peak()
            batch = await job.scored(teachers, ROWS)
            found = await job.updated(learner, batch)
            grown, kept = peak() - before, kept_of(batch)
            assert len(kept) == ROWS
            places = get_object_locations([each.reference for each in kept])
            homes = {node for place in places.values() for node in place["node_ids"]}
            assert ray.get_runtime_context().get_node_id() not in homes
            sent = await job.updated(learner, with_arrays(batch))
            return (
                grown,
                sum(each.nbytes for each in kept),
                homes,
                all(np.array_equal(found[name], sent[name]) for name in sent),
            )

    grown, size, homes, same = asyncio.run(run())
    print(f"{size / 1e6:.0f} MB of hidden states; the driver's peak grew by {grown / 1e6:.1f} MB")
    assert size > 200 * 10**6
    assert grown < 10 * MB
    assert homes
    assert same


@pytest.mark.timeout(600)
def test_scores_of_a_lost_node_are_made_again(nodes: Nodes, tmp_path: Path) -> None:
    homes = [nodes.add_node(num_cpus=1, object_store_memory=400 * MB) for _ in range(3)]
    job, rows = Job(tmp_path), 100

    async def run() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
        config = ClusterConfig(address=nodes.address, threads=1, placement="strict_spread", teacher=TeacherRoleConfig(actors=2))
        async with Cluster(config, tmp_path / "logs", ("teacher", "learner")) as cluster:
            teachers, learner = await job.host(cluster, 2)
            batch = await job.scored(teachers, rows)
            expected = await job.updated(learner, with_arrays(batch))
            batch = await job.scored(teachers, rows)
            home = await teachers.members[1].ask(lambda: ray.get_runtime_context().get_node_id())
            nodes.remove_node(next(each for each in homes if each.node_id == home), allow_graceful=False)
            found = await job.updated(RescoringLearner(learner, teachers), batch)
            return expected, found, len(teachers.members)

    expected, found, left = asyncio.run(run())
    assert left == 1
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5, err_msg=name)


def with_arrays(batch: Batch) -> Batch:
    """The batch with all scores in this process."""
    (stream,) = batch.steps[0]
    scores = at_hand([row.scores for row in stream.rows if row.scores is not None])
    rows = tuple(replace(row, scores=each) for row, each in zip(stream.rows, scores, strict=True))
    return replace(batch, steps=((replace(stream, rows=rows),),))
