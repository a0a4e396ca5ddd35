"""The memory of a run, role by role: a table, what a step moves, and what to change where a role does not fit."""

from typing import TYPE_CHECKING, Any

from minidist.cluster import machine
from minidist.config import DistillConfig, SftConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.learner import LearnerConfig
from minidist.config.teacher import LocalTeacherConfig, VLLMTeacherConfig
from minidist.preflight.memory import (
    BYTES,
    GIB,
    Need,
    Shape,
    both,
    engine_need,
    hf_need,
    kv_bytes_per_token,
    learner_need,
    read_shape,
    score_bytes_per_token,
    with_tutor,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def memory_lines(
    config: SftConfig | DistillConfig,
    student: "PretrainedConfig",
    teacher: "PretrainedConfig | None" = None,
    *,
    longest: int,
) -> list[str]:
    """The plan's lines about memory. `longest`: tokens of the longest sequence, prompt and answer together."""
    ours = read_shape(student, config.student.lora)
    theirs = read_shape(teacher) if teacher is not None else None
    gpu = gpu_bytes(config.cluster)
    needs = role_needs(config, ours, theirs, longest=longest, gpu=gpu)
    lines = _table(needs, gpu)
    if isinstance(config, DistillConfig) and theirs is not None:
        lines += _traffic(config, ours, theirs, needs, longest, gpu)
    lines += [f"the {need.role} keeps {_gib(need.host)} GiB of each process in host memory" for need in needs if need.host]
    return lines + _warnings(config, needs, longest, gpu)


def gpu_bytes(cluster: ClusterConfig) -> int | None:
    """Memory of one GPU: of the smallest that is there, else as configured; 0 if nobody knows. None: the run is on CPUs."""
    if not cluster.gpus:
        return None
    there = [gpu.gib for gpu in machine.gpus()]
    return int((min(there) if there else cluster.gpu_gib or 0.0) * GIB)


def role_needs(
    config: SftConfig | DistillConfig, student: Shape, teacher: Shape | None, *, longest: int, gpu: int | None
) -> list[Need]:
    """What each role needs on each of its devices."""
    cluster, dtype = config.cluster, config.student.dtype
    if isinstance(config, SftConfig) or teacher is None:
        tokens = _micro_tokens(config.learner, longest)
        return [
            learner_need(student, config.learner, dtype=dtype, ranks=cluster.learner.ranks, tokens=tokens, gpu=gpu is not None)
        ]
    given = max([longest, *(stream.max_tokens for stream in config.streams.values())])
    head = teacher.vocabulary * teacher.hidden * BYTES[config.teacher.dtype]
    learner = learner_need(
        student,
        config.learner,
        dtype=dtype,
        ranks=cluster.learner.ranks,
        tokens=_micro_tokens(config.learner, given),
        gpu=gpu is not None,
        teacher_head=head if config.teacher.payload == "hidden" else None,
    )
    if config.teacher.learns:
        tokens = _micro_tokens(config.learner, longest)
        learner = with_tutor(learner, teacher, config.learner, dtype=config.teacher.dtype, tokens=tokens, gpu=gpu is not None)
    if not config.asks_engines:
        return [learner, *_teacher_needs(config, teacher, longest, gpu)]
    writers: dict[str, Any] = {
        "role": "rollout",
        "dtype": dtype,
        "devices": cluster.rollout.actors * cluster.rollout.tensor_parallel,
    }
    writers |= {"split": cluster.rollout.tensor_parallel}
    if config.rollout.engine == "vllm":
        rollout = engine_need(shape=student, config=config.rollout, longest=longest, gpu=gpu, **writers)
    else:
        rollout = hf_need(shape=student, tokens=128 * longest, logits=False, **writers)
        if config.teacher_mix > 0:
            mate: dict[str, Any] = {**writers, "dtype": config.teacher.dtype}
            rollout = both(rollout, hf_need(shape=teacher, tokens=128 * longest, logits=False, **mate))
    return [learner, rollout, *_teacher_needs(config, teacher, longest, gpu)]


def _teacher_needs(config: DistillConfig, shape: Shape, longest: int, gpu: int | None) -> list[Need]:
    teacher, role = config.teacher, config.cluster.teacher
    split = role.shards * role.tensor_parallel
    common = {"role": "teacher", "dtype": teacher.dtype, "devices": role.actors * split, "split": split}
    if not config.asks_actors:
        return []  # there is none, or the learner holds it
    if not isinstance(teacher, LocalTeacherConfig):
        return []  # its memory is somebody else's, or there is none
    if isinstance(teacher, VLLMTeacherConfig):
        return [engine_need(shape=shape, config=teacher, longest=longest, gpu=gpu, scores_prompts=True, **common)]
    tokens = max(teacher.batch_tokens, longest)
    scorer = hf_need(shape=shape, tokens=tokens, logits=teacher.payload != "hidden", **common)
    if config.teacher_mix == 0 or config.rollout.engine != "vllm":
        return [scorer]
    return [both(scorer, engine_need(shape=shape, config=teacher, longest=longest, gpu=gpu, **common))]


def _micro_tokens(learner: LearnerConfig, longest: int) -> int:
    """Tokens of the largest micro-batch: a row longer than the budget stands alone."""
    return max(learner.micro_batch_tokens, longest)


def _table(needs: list[Need], gpu: int | None) -> list[str]:
    """One line a role; purposes that no role has are left out."""
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "cache", "buffers")
    used = [part for part in parts if any(need.parts.get(part) for need in needs)]
    heads = [
        f"memory, GiB a {'process' if gpu is None else 'device'}",
        "devices",
        *used,
        "total",
        *(["of"] if gpu is not None else []),
    ]
    rows = [heads]
    for need in needs:
        cells = [need.role, str(need.devices), *(_gib(need.parts.get(part, 0)) for part in used), _gib(need.total)]
        rows.append([*cells, *([_gib(gpu) if gpu else "?"] if gpu is not None else [])])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _traffic(
    config: DistillConfig, student: Shape, teacher: Shape, needs: list[Need], longest: int, gpu: int | None
) -> list[str]:
    """Cache room, and the bytes a step moves between the roles."""
    lines = []
    if config.rollout.engine == "vllm" and config.asks_engines:
        each = kv_bytes_per_token(student, config.student.dtype, config.cluster.rollout.tensor_parallel)
        room = next(need.parts["cache"] for need in needs if need.role == "rollout") // each
        if gpu != 0:
            text = f"each engine's cache: {each / 1024:,.1f} KiB a token, room for {room:,} tokens"
            lines.append(f"{text}, {room // longest:,} sequences of {longest:,}")
    scores, weights = step_bytes(config, student, teacher)
    to_engines = f" and {_amount(weights)} of weights to the engines" if config.asks_engines else ""
    lines.append(f"a step moves up to {_amount(scores)} of scores to the learner{to_engines}")
    store, ours = config.cluster.object_store_gib, config.cluster.roles == "ray" and config.cluster.address is None
    if ours and scores + weights > store * GIB:
        lines.append(
            f"WARNING that is more than cluster.object_store_gib = {store:g}, and Ray would write the rest to disk; set "
            f"cluster.object_store_gib={-(-(scores + weights) // GIB)}"
        )
    return lines


def step_bytes(config: DistillConfig, student: Shape, teacher: Shape) -> tuple[int, int]:
    """Bytes of a step's scores, at most, and of one publication of the student's weights."""
    weights = student.parameters * BYTES[config.student.dtype] if config.asks_engines else 0
    if config.teacher.learns:
        return 0, weights
    answers = config.rollout.prompts_per_step * config.rollout.samples_per_prompt * config.rollout.max_new_tokens
    return answers * score_bytes_per_token(config.teacher, teacher.hidden), weights


def _warnings(config: SftConfig | DistillConfig, needs: list[Need], longest: int, gpu: int | None) -> list[str]:
    if gpu == 0:
        return ["set cluster.gpu_gib to the memory of one of the cluster's GPUs, and this says whether each role fits"]
    if gpu is None:
        return _host_warnings(config, needs)
    found = [
        f"WARNING the {need.role} does not fit: it needs {_gib(need.least)} GiB of each GPU and may take {_gib(allowed)}; "
        f"{_fix(config, need)}"
        for need in needs
        if need.least > (allowed := int(gpu * need.allowance))
    ]
    shared = _shared(config.cluster, needs)
    if shared > gpu and not found:
        found.append(
            f"WARNING roles share GPUs and need {_gib(shared)} GiB of one that has {_gib(gpu)}; set cluster.gpus to "
            f"{sum(need.devices for need in needs)}, or lower gpu_memory_utilization"
        )
    return found


def _shared(cluster: ClusterConfig, needs: list[Need]) -> int:
    """Bytes on the fullest GPU when there are fewer of them than the roles would have for themselves; 0 when there are not."""
    totals = sorted((need.total for need in needs for _ in range(need.devices)), reverse=True)
    return sum(totals[: -(-len(totals) // cluster.gpus)]) if len(totals) > cluster.gpus else 0


def _host_warnings(config: SftConfig | DistillConfig, needs: list[Need]) -> list[str]:
    """On CPUs all roles of this machine share its memory."""
    if config.cluster.address is not None:
        return []
    memory = machine.host_memory()
    total = sum(need.total * need.devices for need in needs)
    if config.cluster.roles == "ray":
        total += int(config.cluster.object_store_gib * GIB)
    small = [
        f"WARNING the {need.role}'s cache does not hold one sequence; set {need.role}.kv_cache_gib to {_gib(need.least_cache)}"
        for need in needs
        if need.parts.get("cache", 0) < need.least_cache
    ]
    line = f"all roles and the object store: {_gib(total)} GiB of this machine's {memory.gib:.1f}"
    if total <= memory.gib * GIB:
        return [*small, line]
    widest = max(needs, key=lambda need: need.total * need.devices)
    return [*small, f"WARNING {line}; the {widest.role} needs most: {_fix(config, widest)}"]


def _fix(config: SftConfig | DistillConfig, need: Need) -> str:
    """What to change, by what takes most."""
    widest = max(need.parts, key=lambda part: need.parts[part] if part != "cache" else 0)
    if need.role == "learner":
        return _fix_learner(config.learner, config.cluster, widest)
    if need.role == "rollout" or (isinstance(config, DistillConfig) and isinstance(config.teacher, VLLMTeacherConfig)):
        split = f"cluster.{need.role}.tensor_parallel"
        return f"raise {need.role}.gpu_memory_utilization or {split}, or lower {need.role}.max_sequences"
    if widest in ("activations", "logits"):
        return "lower teacher.batch_tokens"
    return "raise cluster.teacher.shards, or set teacher.dtype=bfloat16"


def _fix_learner(learner: LearnerConfig, cluster: ClusterConfig, widest: str) -> str:
    if widest == "logits":
        return (
            f"lower learner.chunk_tokens below {learner.chunk_tokens}"
            if learner.chunk_tokens
            else "set learner.chunk_tokens=64"
        )
    if widest == "activations" and not learner.activation_checkpointing:
        return "set learner.activation_checkpointing=true"
    if widest == "activations":
        return f"lower learner.micro_batch_tokens below {learner.micro_batch_tokens}"
    if learner.backend == "single":
        return "set learner.backend=deepspeed, learner.zero_stage=3 and more cluster.learner.ranks"
    if learner.zero_stage < 3:
        return "set learner.zero_stage=3" + (" and more cluster.learner.ranks" if cluster.learner.ranks == 1 else "")
    if not learner.offload_optimizer and cluster.gpus:
        return f"raise cluster.learner.ranks above {cluster.learner.ranks}, or set learner.offload_optimizer=true"
    return f"raise cluster.learner.ranks above {cluster.learner.ranks}"


def _gib(size: int) -> str:
    """GiB without their unit."""
    return "–" if size == 0 else f"{size / GIB:.1f}" if size >= GIB else f"{size / GIB:.2f}"


def _amount(size: int) -> str:
    """With the unit that suits it."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
