"""Actors, devices and fractions of devices that do not fit together."""

from pathlib import Path

import pytest

from minidist.config import DistillConfig
from minidist.config.changes import free_settings
from tests.support.config import assert_refused, load_stage

REFUSED = [
    (
        "distill",
        ["cluster.address=auto", "cluster.rollout.actors=1000000000000000"],
        ["cluster has 1,000,000,000,000,002 processes in all", "more than the 100,000 of any cluster"],
    ),
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
    (
        "distill",
        ["cluster={roles: local, weight_transfer: gloo}"],
        ["cluster.weight_transfer gloo needs processes", "cluster.roles local has one", "set cluster.roles=ray"],
    ),
    (
        "distill",
        ["cluster.weight_transfer=gloo", "rollout.engine=hf"],
        ["cluster.weight_transfer gloo is a way of vLLM engines", "rollout.engine is hf", "set rollout.engine=vllm"],
    ),
    (
        "distill",
        ["cluster.weight_transfer=nccl"],
        ["cluster.weight_transfer nccl sends from GPU to GPU", "have none", "cluster.weight_transfer=gloo"],
    ),
    (
        "distill",
        ["cluster={weight_transfer: ipc, gpus: 2, rollout: {gpus: 0}}"],
        ["cluster.weight_transfer ipc sends from GPU to GPU", "set cluster.gpus, or cluster.weight_transfer=gloo"],
    ),
    (
        "distill",
        ["cluster={weight_transfer: ipc, gpus: 1, residency: true}"],
        ["cluster.weight_transfer ipc needs learner and engines awake", "set cluster.residency=false"],
    ),
    (
        "distill",
        ["cluster={weight_transfer: nccl, gpus: 2}"],
        ["cluster.weight_transfer nccl needs a GPU of its own", "leave cluster.weight_transfer out"],
    ),
    (
        "distill",
        ["cluster={weight_transfer: ipc, gpus: 3}"],
        ["cluster.weight_transfer ipc needs every engine on a GPU that it shares", "leave cluster.weight_transfer out"],
    ),
    (
        "distill",
        ["cluster={weight_transfer: ipc, gpus: 1}", "learner.zero_stage=3"],
        ["cluster.weight_transfer ipc opens whole tensors", "learner.zero_stage 3", "set learner.zero_stage=2"],
    ),
]


@pytest.mark.parametrize(("stage", "overrides", "parts"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_roles_that_do_not_fit_are_refused(tmp_path: Path, stage: str, overrides: list[str], parts: list[str]) -> None:
    assert_refused(tmp_path, stage, overrides, parts)


WAYS = {
    "no GPU": ([], "object_store", None),
    "a GPU for each role": (["cluster.gpus=3"], "nccl", "nccl"),
    "split engines": (["cluster={gpus: 6, rollout: {actors: 2, tensor_parallel: 2}}"], "nccl", "nccl"),
    "one GPU": (["cluster.gpus=1"], "ipc", "ipc"),
    "engine and learner on the first of two": (["cluster.gpus=2"], "ipc", "ipc"),
    "each engine beside a rank": (["cluster={gpus: 2, rollout: {actors: 2}, learner: {ranks: 2}}"], "ipc", "ipc"),
    "an engine beside no rank": (["cluster={gpus: 2, rollout: {actors: 2}}"], "object_store", None),
    "fractions of some GPU": (["cluster={gpus: 1, rollout: {gpus: 0.4}, learner: {gpus: 0.4}}"], "object_store", None),
    "engines without a GPU": (["cluster={gpus: 2, rollout: {gpus: 0}}"], "object_store", None),
    "partitioned weights, one GPU": (["cluster.gpus=1", "learner.zero_stage=3"], "object_store", "ipc"),
    "partitioned weights, GPUs apart": (["cluster.gpus=3", "learner.zero_stage=3"], "nccl", "nccl"),
    "one GPU, held in turn": (["cluster={gpus: 1, residency: true}"], "object_store", None),
    "adapters": (["cluster.gpus=3", "student.lora={rank: 2}"], "object_store", "nccl"),
    "transformers": (["cluster.gpus=3", "rollout.engine=hf"], "object_store", None),
    "one process": (["cluster={roles: local, gpus: 1}"], "object_store", None),
    "asked for": (["cluster={gpus: 3, weight_transfer: object_store}"], "object_store", None),
    "asked for gloo": (["cluster.weight_transfer=gloo"], "gloo", "gloo"),
    "a teacher elsewhere": (["cluster={gpus: 3, weight_transfer: ipc, teacher: {gpus: 2}}"], "ipc", "ipc"),
}


@pytest.mark.parametrize("case", WAYS)
def test_weights_take_the_way_that_the_devices_allow(tmp_path: Path, case: str) -> None:
    overrides, way, channel = WAYS[case]
    config = load_stage(tmp_path, "distill", *overrides)
    assert (config.weight_transfer, config.channel) == (way, channel)
    assert "cluster" in free_settings(DistillConfig), "the way changes no number: it may differ when a run resumes"
