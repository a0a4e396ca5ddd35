"""Conflicts of a distillation."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from minidist.config.conflicts.learner import learner
from minidist.config.conflicts.objective import objective
from minidist.config.conflicts.routing import routing
from minidist.config.conflicts.teacher import context, score_cache, teacher_role, teacher_text
from minidist.config.conflicts.text import overlap, replay, text
from minidist.config.sentence import of_teacher
from minidist.types import MAIN

if TYPE_CHECKING:
    from minidist.config import DistillConfig


def distill(c: "DistillConfig") -> Iterator[str]:
    """All conflicts of a distillation: of several teachers among themselves, and of each of them."""
    yield from routing(c)
    for key in c.named_teachers:
        yield from (of_teacher(conflict, key) for conflict in of_one_teacher(c.with_teacher_alone(key)))
    yield from weights(c)


def of_one_teacher(c: "DistillConfig") -> Iterator[str]:
    """All conflicts of a distillation with one teacher but those of `weights`."""
    for field in ("tensor_parallel", "pipeline_parallel") if c.rollout.engine == "hf" else ():
        if getattr(c.cluster.rollout, field) > 1:
            yield f"cluster.rollout.{field} splits vLLM engines; set rollout.engine=vllm"
    yield from teacher_role(c)
    yield from learner(c)
    if not c.teacher.live:
        yield from score_cache(c)
    if not c.teacher.writes:
        yield from teacher_text(c)
    if c.teacher.context is not None:
        yield from context(c)
    if c.student.architecture is not None:
        yield "student.architecture describes an untrained model; run minidist sft first, and set student.model to its result"
    if MAIN in c.streams:
        yield f"streams.{MAIN}: {MAIN} is the name of the stream of objective and prefix; give the stream another name"
    for key, section in c.objectives.items():
        yield from objective(c, key, section)
    yield from text(c)
    yield from replay(c)
    yield from overlap(c)
    yield from residency(c)
    if c.learner.kernel == "liger" and not any(section.fused for section in c.objectives.values()):
        fused = "learner.kernel liger computes forward_kl, reverse_kl and jsd (also in kd and minillm)"
        yield f"{fused}, and objective.type is {c.objective.type}; set learner.kernel=torch"
    if c.teacher.learns and not c.objective.matches_teacher:
        mismatch = f"objective.type {c.objective.type} is no divergence from the teacher, as a teacher that learns needs"
        yield f"{mismatch}; set objective.type=reverse_kl, or teacher.placement=actor"
    if c.teacher.learns and c.teacher.dtype == "float16":
        yield "teacher.dtype float16 loses small gradients of teacher.prompt; set teacher.dtype=bfloat16 or float32"
    if c.evaluation.patience is not None:
        yield "evaluation.patience belongs to sft; distillation runs for run.steps"
    if c.evaluation.every and c.data.validation is None:
        yield "evaluation.every needs data.validation: held-out prompts"


def residency(c: "DistillConfig") -> Iterator[str]:
    """Of roles that hold their devices in turn."""
    if not c.cluster.residency:
        return
    turns = "cluster.residency lets one kind of role work at a time"
    if c.roles_at_once:
        at_once = "loop.max_staleness and loop.stream have several work at once"
        yield f"{turns}, and {at_once}; set loop.max_staleness=0 and loop.stream=false"
    if c.takes_turns:
        yield f"{turns}, and rollout.teacher_mix passes each text between engine and teacher; set rollout.engine=hf"
    if c.cluster.teacher.shards > 1:
        yield "cluster.residency moves whole teachers; set cluster.teacher.shards=1, or teacher.backend=vllm"
    if c.teacher.learns:
        yield "cluster.residency does not move a teacher that learns, which is in the learner; set cluster.residency=false"
    if c.learner.offload_parameters:
        yield "cluster.residency and learner.offload_parameters both move the weights; set one of them to false"
    if c.cluster.gpus and c.cluster.roles == "local":
        yield "cluster.residency moves the memory of processes, and cluster.roles local has one for all; set cluster.roles=ray"


def weights(c: "DistillConfig") -> Iterator[str]:
    """Of the way that new weights take to the engines."""
    asked, cluster = c.cluster.weight_transfer, c.cluster
    if asked in (None, "object_store") or "rollout" not in c.hosted:
        return
    key = f"cluster.weight_transfer {asked}"
    if c.rollout.engine != "vllm":
        yield f"{key} is a way of vLLM engines, and rollout.engine is {c.rollout.engine}; set rollout.engine=vllm"
    if cluster.residency:
        asleep = "needs learner and engines awake at once, and cluster.residency lets one of them be"
        yield f"{key} {asleep}; leave cluster.weight_transfer out, or set cluster.residency=false"
    if asked == "gloo":
        return
    cluster.host(c.hosted, c.teacher_count)
    if not all(cluster.gpus_of(role) for role in (cluster.rollout, cluster.learner)):
        without = "sends from GPU to GPU, and engines or learner have none"
        yield f"{key} {without}; set cluster.gpus, or cluster.weight_transfer=gloo"
    elif cluster.direct != asked:
        needs = {
            "nccl": "needs a GPU of its own for every engine and for the learner's first rank",
            "ipc": "needs every engine on a GPU that it shares with a rank of the learner",
        }
        yield f"{key} {needs[asked]}, and this run's GPUs are dealt otherwise; leave cluster.weight_transfer out"
    if asked == "ipc" and c.learner.partitions_weights:
        yield f"{key} opens whole tensors, and learner.zero_stage 3 partitions them; set learner.zero_stage=2, or leave it out"
