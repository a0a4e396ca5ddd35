"""Actors, devices and fractions of devices that do not fit together."""

from pathlib import Path

import pytest

from tests.support.config import assert_refused

REFUSED = [
    (
        "distill",
        ["cluster.roles=local", "cluster.rollout.actors=2"],
        ["cluster.roles local has one actor of each role", "set cluster.roles=ray"],
    ),
    ("distill", ["cluster.teacher.gpus=1.5", "cluster.gpus=4"], ["cluster.teacher.gpus is 1.5", "or whole devices"]),
    (
        "distill",
        ["cluster.rollout={tensor_parallel: 2, gpus: 1}", "cluster.gpus=4"],
        ["cluster.rollout.gpus is 1.0", "needs 2 whole devices"],
    ),
    (
        "distill",
        ["cluster.rollout.tensor_parallel=2", "cluster.gpus=3"],
        ["cluster.gpus is 3", "each actor of cluster.rollout needs 2", "set cluster.rollout.gpus=2"],
    ),
    (
        "distill",
        ["cluster.rollout={tensor_parallel: 2, gpus: 2}", "cluster.gpus=2"],
        ["cluster.gpus is 2", "claim 2", "none for the others (teacher, learner)", "raise cluster.gpus"],
    ),
    (
        "distill",
        ["cluster.rollout={tensor_parallel: 2, pipeline_parallel: 2, gpus: 2}", "cluster.gpus=8"],
        ["cluster.rollout.gpus is 2.0", "needs 4 whole devices"],
    ),
    (
        "distill",
        ["cluster.rollout.pipeline_parallel=4", "cluster.gpus=5"],
        ["cluster.gpus is 5", "each actor of cluster.rollout needs 4", "set cluster.rollout.gpus=4"],
    ),
    (
        "distill",
        ["cluster.rollout={pipeline_parallel: 2, across_nodes: true}", "cluster.gpus=4"],
        ["cluster.rollout.across_nodes", "cluster.address is null", "set cluster.address"],
    ),
    (
        "distill",
        ["cluster.rollout={pipeline_parallel: 2, across_nodes: true}", "cluster.address=auto"],
        ["cluster.rollout.across_nodes", "the role has no GPUs", "leave it out"],
    ),
    (
        "distill",
        [
            "cluster.teacher={pipeline_parallel: 2, across_nodes: true}",
            "cluster.address=auto",
            "cluster.gpus=4",
            "cluster.residency=true",
        ],
        ["cluster.teacher.across_nodes", "no other role's in turn", "set cluster.residency=false"],
    ),
    (
        "distill",
        ["cluster.teacher={across_nodes: true}", "cluster.address=auto", "cluster.gpus=4"],
        ["each model of cluster.teacher has one device", "set cluster.teacher.pipeline_parallel or tensor_parallel above 1"],
    ),
    (
        "sft",
        ["cluster.learner.ranks=3", "cluster.gpus=2"],
        ["cluster.gpus is 2", "3 processes of cluster.learner may not share a device", "raise cluster.gpus to 3"],
    ),
    (
        "distill",
        ["cluster.teacher={shards: 2, gpus: 0.5}", "teacher.backend=hf", "cluster.gpus=4"],
        ["cluster.teacher.gpus is 0.5", "2 processes may not share a device", "set cluster.teacher.gpus=1"],
    ),
]


@pytest.mark.parametrize(("stage", "overrides", "parts"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_roles_that_do_not_fit_are_refused(tmp_path: Path, stage: str, overrides: list[str], parts: list[str]) -> None:
    assert_refused(tmp_path, stage, overrides, parts)
