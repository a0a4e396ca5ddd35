"""The scenario of a distillation's configuration."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minidist.config import DistillConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.engines import engine_limits
from minidist.config.teacher import LocalTeacherConfig
from minidist.experience.scoring import scores_as_written
from minidist.preflight import memory
from minidist.preflight.forecast.rates import Rates
from minidist.preflight.forecast.scenario import Design, Layout, Model, Paths, Scenario, Workload
from minidist.preflight.memory import GIB
from minidist.types import Payload

if TYPE_CHECKING:
    from minidist.models.shape import Shape


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers, on average."""

    prompt: float
    answer: float


def scenario_of(config: DistillConfig, student: "Shape", teacher: "Shape", lengths: Lengths, rates: Rates) -> Scenario:
    """The main stream of a distillation: further streams are not in it, and neither are evaluations and checkpoints.

    On CPUs all roles share one machine, whatever their number: it is one device, on which they take turns.
    """
    hosted = config.main_scored and isinstance(config.teacher, LocalTeacherConfig)
    rollout, scores = config.rollout, config.teacher
    workload = Workload(
        prompts=rollout.prompts_per_step,
        samples=rollout.samples_per_prompt,
        prompt=lengths.prompt,
        answer=lengths.answer,
        payload_bytes=memory.score_bytes_per_token(scores, teacher.hidden) if config.main_scored else 0,
        hidden=config.main_scored and scores.payload is Payload.HIDDEN,
        top_k=scores.payload is Payload.TOP_K and scores.in_vllm,
        updates=config.objective.updates,
    )
    return Scenario(
        Model(student, config.student.dtype),
        Model(teacher, scores.dtype) if hosted else None,
        workload,
        _layout(config, student, rates),
        rates,
        Paths(weights="broadcast" if config.weight_transfer in ("nccl", "ipc") else "host"),
        _design(config),
    )


def _layout(config: DistillConfig, student: "Shape", rates: Rates) -> Layout:
    cluster, learner, rollout = config.cluster, config.learner, config.rollout
    settings = {
        "zero": 0 if learner.backend == "single" else learner.zero_stage,
        "micro_batch": learner.micro_batch_tokens,
        "chunk": learner.chunk(student.vocabulary),
        "checkpointing": learner.activation_checkpointing,
        "max_sequences": engine_limits(rollout, longest=config.data.max_prompt_tokens, on_gpu=cluster.gpus > 0).sequences,
    }
    if not cluster.gpus:
        return Layout(1, 1, 1, cache=rollout.kv_cache_gib * GIB * cluster.rollout.actors, **settings)
    split = cluster.rollout.devices
    cache = rates.device.gib * GIB * rollout.gpu_memory_utilization * split
    weights = student.parameters * memory.BYTES[rollout.dtype or config.student.dtype]
    return Layout(
        *_devices(cluster),
        rollout_split=split,
        teacher_split=cluster.teacher.shards * cluster.teacher.devices,
        cache=max(0.0, cache - weights),
        **settings,
    )


def _devices(cluster: ClusterConfig) -> tuple[int, int, int]:
    """Devices of engines, teachers and learner."""
    if cluster.shares_devices:
        return cluster.gpus, cluster.gpus, cluster.gpus
    rollout, teacher, learner = cluster.rollout, cluster.teacher, cluster.learner
    return rollout.processes * rollout.devices, teacher.processes * teacher.devices, learner.processes


def _design(config: DistillConfig) -> Design:
    """What overlaps. On one machine's cores nothing gains by it: what works at the same time shares them."""
    if not config.cluster.gpus or config.cluster.shares_devices:
        return Design.COLOCATED
    if config.loop.max_staleness:
        return Design.STALE
    return Design.STREAMED if scores_as_written(config) else Design.DISJOINT
