"""The memory of a run, role by role: a table, what a step moves, and what to change where a role does not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minidist.cluster import machine
from minidist.config import DistillConfig, SftConfig, TeachConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.learner import LearnerConfig
from minidist.config.sentence import of_teacher
from minidist.config.teacher import LocalTeacherConfig
from minidist.preflight import memory
from minidist.preflight.memory import BYTES, GIB, LessonModel, Need, ServedModel, TrainedModel

if TYPE_CHECKING:
    from minidist.models.shape import Shape


def sft_memory_lines(config: SftConfig, student: "Shape", *, longest: int) -> list[str]:
    """Lines of the plan of supervised fine-tuning. `longest`: tokens of the longest sequence."""
    gpu = gpu_bytes(config.cluster)
    needs = [memory.learner_need(_trained(config, student, longest, gpu))]
    return [*_table(needs, gpu), *_host_lines(needs), *_warnings(config, needs, gpu)]


def memory_lines(
    config: DistillConfig,
    student: "Shape",
    teacher: "Shape | Mapping[str, Shape]",
    *,
    longest: int,
    teacher_longest: int | Mapping[str, int] = 0,
) -> list[str]:
    """Lines of the plan of a distillation. `longest`: tokens of the longest sequence, prompt and answer together;
    `teacher_longest`: of the longest that the teacher reads, where its prompts are longer. Of several teachers both are given
    by their keys."""
    gpu, shapes = gpu_bytes(config.cluster), _by_key(config, teacher)
    of_teachers = _by_key(config, teacher_longest)
    if config.teachers:
        needs = needs_of_several(config, student, shapes, longest=longest, teacher_longest=of_teachers, gpu=gpu)
    else:
        (shape,), (own,) = shapes.values(), of_teachers.values()
        needs = role_needs(config, student, shape, longest=longest, teacher_longest=max(longest, own), gpu=gpu)
    traffic = _traffic(config, student, shapes, needs, longest, gpu)
    return [*_table(needs, gpu), *traffic, *_host_lines(needs), *_warnings(config, needs, gpu)]


def lesson_memory_lines(config: TeachConfig, models: Sequence[LessonModel]) -> list[str]:
    """Lines of the plan of a lesson. `models`: the student, the teacher, and the lesson's other models."""
    gpu = gpu_bytes(config.cluster)
    needs = [memory.lesson_need(config.lesson, models, config.cluster.learner.ranks, gpu=gpu is not None)]
    return [*_table(needs, gpu), *_warnings(config, needs, gpu)]


def gpu_bytes(cluster: ClusterConfig) -> int | None:
    """Memory of one GPU: of the machine's smallest, else as configured; 0 if unknown. None: the run is on CPUs."""
    if not cluster.gpus:
        return None
    found = [gpu.gib for gpu in machine.gpus()]
    return int((min(found) if found else cluster.gpu_gib or 0.0) * GIB)


def role_needs(
    config: DistillConfig, student: "Shape", teacher: "Shape", *, longest: int, teacher_longest: int = 0, gpu: int | None
) -> list[Need]:
    """The need of each role that the run has, on each of its devices: learner, engines, teachers."""
    longest_row = max([longest, *(stream.max_tokens for stream in config.streams.values())])
    head = _head_bytes(config, teacher) if config.teacher.payload == "hidden" else None
    learner = memory.learner_need(_trained(config, student, longest_row, gpu), teacher_head=head)
    if config.teacher.learns:
        prompted = replace(_trained(config, student, longest, gpu), shape=teacher, dtype=config.teacher.dtype)
        learner = memory.with_prompted_teacher(learner, prompted)
    of_teacher = max(longest, teacher_longest)
    rollout = [_rollout_need(config, student, teacher, (longest, of_teacher), gpu)] if config.asks_engines else []
    return [learner, *rollout, *_teacher_needs(config, teacher, of_teacher, gpu)]


def needs_of_several(
    config: DistillConfig,
    student: "Shape",
    teachers: "Mapping[str, Shape]",
    *,
    longest: int,
    teacher_longest: Mapping[str, int],
    gpu: int | None,
) -> list[Need]:
    """`role_needs` of a run with several teachers: each has devices of its own, and the learner holds all heads of those that
    give hidden states."""
    found: list[Need] = []
    heads: dict[tuple[str, str], int] = {}
    for key, shape in teachers.items():
        alone = config.with_teacher_alone(key)
        of_one = role_needs(alone, student, shape, longest=longest, teacher_longest=teacher_longest[key], gpu=gpu)
        others = [replace(need, name=key) for need in of_one if need.role == "teacher"]
        found = [need for need in (found or of_one) if need.name or need.role != "teacher"] + others
        if alone.teacher.payload == "hidden":
            heads[alone.teacher.model, alone.teacher.dtype] = _head_bytes(alone, shape)
    row = max([longest, *(each.max_tokens for each in config.streams.values())])
    learner = memory.learner_need(_trained(config, student, row, gpu), teacher_head=sum(heads.values()) if heads else None)
    return [learner if need.role == "learner" else need for need in found]


def _head_bytes(config: DistillConfig, teacher: "Shape") -> int:
    """Bytes of the teacher's output head."""
    return teacher.vocabulary * teacher.hidden * BYTES[config.teacher.dtype]


def _by_key(config: DistillConfig, value: Any) -> dict[str, Any]:
    """A value of each teacher, by the keys of the teachers."""
    return dict(value) if isinstance(value, Mapping) else dict.fromkeys(config.named_teachers, value)


def _trained(config: SftConfig | DistillConfig, student: "Shape", longest: int, gpu: int | None) -> TrainedModel:
    """The student in one rank of the learner. `longest`: tokens of the longest row."""
    tokens = max(config.learner.micro_batch_tokens, longest)  # a row longer than the budget is a micro-batch of its own
    return TrainedModel(student, config.learner, config.student.dtype, config.cluster.learner.ranks, tokens, gpu is not None)


def _rollout_need(config: DistillConfig, student: "Shape", teacher: "Shape", tokens: tuple[int, int], gpu: int | None) -> Need:
    """`tokens`: of the longest sequence of the student, and of the teacher."""
    longest, of_teacher = tokens
    engine = _engine(config, student)
    if config.rollout.engine == "vllm":
        return memory.engine_need(engine, config.rollout, longest=longest, gpu=gpu)
    if not config.teacher_mix:
        from minidist.rollout.hf import ROWS

        return memory.hf_need(engine, tokens=ROWS * longest, logits=False)
    from minidist.rollout.mixed.lockstep import ROWS as PAIRS

    copy = replace(engine, shape=teacher, dtype=config.teacher.dtype)
    both = (engine, longest), (copy, of_teacher)
    return memory.in_one_process(*(memory.hf_need(model, tokens=PAIRS * each, logits=False) for model, each in both))


def _engine(config: DistillConfig, student: "Shape") -> ServedModel:
    """The student in the rollout engines."""
    role, dtype = config.cluster.rollout, config.rollout.dtype or config.student.dtype
    return ServedModel(
        "rollout", student, dtype, role.actors * role.devices, split=role.tensor_parallel, stages=role.pipeline_parallel
    )


def _teacher_needs(config: DistillConfig, shape: "Shape", longest: int, gpu: int | None) -> list[Need]:
    """The teacher's need; none where nobody asks actors, or where a server or a cache stands in for them."""
    teacher, role = config.teacher, config.cluster.teacher
    if not (config.asks_actors and isinstance(teacher, LocalTeacherConfig)):
        return []
    split = role.shards * role.tensor_parallel
    devices = role.actors * split * role.pipeline_parallel
    model = ServedModel("teacher", shape, teacher.dtype, devices, split, role.pipeline_parallel)
    if teacher.in_vllm:
        return [memory.engine_need(model, teacher, longest=longest, gpu=gpu, gives="scores" if teacher.writes else "hidden")]
    tokens = max(teacher.batch_tokens, longest)
    scorer = memory.hf_need(model, tokens=tokens, logits=teacher.payload != "hidden")
    engine = memory.engine_need(model, teacher, longest=longest, gpu=gpu)
    return [memory.in_one_process(scorer, engine) if config.takes_turns else scorer]


def _host_lines(needs: list[Need]) -> list[str]:
    return [f"the {need.shown} keeps {_gib(need.host)} GiB of each process in host memory" for need in needs if need.host]


def _table(needs: list[Need], gpu: int | None) -> list[str]:
    """One line a role, one column a purpose that any role has."""
    parts = ("weights", "gradients", "optimizer", "copies", "activations", "logits", "cache", "buffers")
    used = [part for part in parts if any(need.parts.get(part) for need in needs)]
    rows = [[f"memory, GiB a {'process' if gpu is None else 'device'}", "devices", *used, "total"]]
    for need in needs:
        rows.append([need.shown, str(need.devices), *(_gib(need.parts.get(part, 0)) for part in used), _gib(need.total)])
    if gpu is not None:
        rows = [[*row, "of" if row is rows[0] else _gib(gpu) if gpu else "?"] for row in rows]
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) for row in rows]


def _traffic(
    config: DistillConfig, student: "Shape", teachers: "Mapping[str, Shape]", needs: list[Need], longest: int, gpu: int | None
) -> list[str]:
    """Room in the engines' caches, and the bytes that a step moves between the roles."""
    lines = []
    if config.rollout.engine == "vllm" and config.asks_engines:
        each = _engine(config, student).kv_bytes_per_token
        room = next(need.parts["cache"] for need in needs if need.role == "rollout") // each
        if gpu != 0:
            text = f"each engine's cache: {each / 1024:,.1f} KiB a token, room for {room:,} tokens"
            lines.append(f"{text}, {room // longest:,} sequences of {longest:,}")
    each_of = [step_bytes(config.with_teacher_alone(key), student, shape) for key, shape in teachers.items()]
    scores = (sum if config.mixes_teachers else max)(scores for scores, _ in each_of)
    weights = each_of[0][1]
    to_engines = f" and {_amount(weights)} of weights to the engines" if config.asks_engines else ""
    lines.append(f"a step moves up to {_amount(scores)} of scores to the learner{to_engines}")
    store, starts_ray = config.cluster.object_store_gib, config.cluster.roles == "ray" and config.cluster.address is None
    if starts_ray and scores + weights > store * GIB:
        found = f"that is more than cluster.object_store_gib = {store:g}, and Ray would write the rest to disk"
        lines.append(f"WARNING {found}; set cluster.object_store_gib={-(-(scores + weights) // GIB)}")
    return lines


def step_bytes(config: DistillConfig, student: "Shape", teacher: "Shape") -> tuple[int, int]:
    """Most bytes of a step's scores, and bytes of one publication of the student's weights."""
    weights = student.parameters * BYTES[config.student.dtype] if config.asks_engines else 0
    if config.teacher.learns:
        return 0, weights
    answers = config.rollout.prompts_per_step * config.rollout.samples_per_prompt * config.rollout.max_new_tokens
    return answers * memory.score_bytes_per_token(config.teacher, teacher.hidden), weights


def _warnings(config: SftConfig | DistillConfig | TeachConfig, needs: list[Need], gpu: int | None) -> list[str]:
    if gpu == 0:
        return ["set cluster.gpu_gib to the memory of one of the cluster's GPUs, to see whether each role fits"]
    if gpu is None:
        return _host_warnings(config, needs)
    found = [
        f"WARNING the {need.shown} does not fit: it needs {_gib(need.least)} GiB of each GPU and may take {_gib(allowed)}; "
        f"{_fix(config, need)}"
        for need in needs
        if need.least > (allowed := int(gpu * need.allowance))
    ]
    shared = _shared(config.cluster, needs)
    if shared > gpu and not found:
        remedy = f"set cluster.gpus to {sum(need.devices for need in needs)}, or lower gpu_memory_utilization"
        found.append(f"WARNING roles share GPUs and need {_gib(shared)} GiB of one that has {_gib(gpu)}; {remedy}")
    return found


def _shared(cluster: ClusterConfig, needs: list[Need]) -> int:
    """Bytes on the fullest GPU where roles share GPUs, side by side or in turn; 0 where each has its own."""
    if sum(need.devices for need in needs) <= cluster.gpus:
        return 0
    roles = dict.fromkeys(need.role for need in needs)
    kinds = [[need for need in needs if need.role == role] for role in roles] if cluster.residency else [needs]
    fullest = []
    for kind in kinds:
        totals = sorted((need.total for need in kind for _ in range(need.devices)), reverse=True)
        fullest.append(sum(totals[: -(-len(totals) // cluster.gpus)]))
    return max(fullest)


def _host_warnings(config: SftConfig | DistillConfig | TeachConfig, needs: list[Need]) -> list[str]:
    """On CPUs all roles of this machine share its memory."""
    if config.cluster.address is not None:
        return []
    host = machine.host_memory()
    total = sum(need.total * need.devices for need in needs)
    if config.cluster.roles == "ray":
        total += int(config.cluster.object_store_gib * GIB)
    small = [
        f"WARNING the {role}'s cache does not hold one sequence; set {role}.kv_cache_gib to {_gib(need.least_cache)}"
        for need in needs
        for role in [need.shown]
        if need.parts.get("cache", 0) < need.least_cache
    ]
    line = f"all roles and the object store: {_gib(total)} GiB of this machine's {host.gib:.1f}"
    if total <= host.gib * GIB:
        return [*small, line]
    largest = max(needs, key=lambda need: need.total * need.devices)
    return [*small, f"WARNING {line}; the {largest.shown} needs most: {_fix(config, largest)}"]


def _fix(config: SftConfig | DistillConfig | TeachConfig, need: Need) -> str:
    """The setting to change, chosen by the largest part."""
    if isinstance(config, DistillConfig) and need.name:
        return of_teacher(_fix(config.with_teacher_alone(need.name), replace(need, name="")), need.name)
    largest = max(need.parts, key=lambda part: need.parts[part] if part != "cache" else 0)
    if isinstance(config, TeachConfig):
        return _fix_lesson(config, largest)
    if need.role == "learner":
        return _fix_learner(config.learner, config.cluster, largest)
    if need.role == "rollout" or (isinstance(config, DistillConfig) and config.teacher.in_vllm):
        split = f"cluster.{need.role}.tensor_parallel"
        return f"raise {need.role}.gpu_memory_utilization or {split}, or lower {need.role}.max_sequences"
    if largest in ("activations", "logits"):
        return "lower teacher.batch_tokens"
    return "raise cluster.teacher.shards, or set teacher.dtype=bfloat16"


def _fix_learner(learner: LearnerConfig, cluster: ClusterConfig, largest: str) -> str:
    if largest == "logits":
        chunk = learner.chunk_tokens
        return f"lower learner.chunk_tokens below {chunk}" if chunk else "set learner.chunk_tokens=64"
    if largest == "activations" and not learner.activation_checkpointing:
        return "set learner.activation_checkpointing=true"
    if largest == "activations":
        return f"lower learner.micro_batch_tokens below {learner.micro_batch_tokens}"
    if learner.backend == "single":
        return "set learner.backend=deepspeed, learner.zero_stage=3 and more cluster.learner.ranks"
    if learner.zero_stage < 3:
        return "set learner.zero_stage=3" + (" and more cluster.learner.ranks" if cluster.learner.ranks == 1 else "")
    if not learner.offload_optimizer and cluster.gpus:
        return f"raise cluster.learner.ranks above {cluster.learner.ranks}, or set learner.offload_optimizer=true"
    return f"raise cluster.learner.ranks above {cluster.learner.ranks}"


def _fix_lesson(config: TeachConfig, largest: str) -> str:
    if largest in ("activations", "logits", "buffers") and config.learner.micro_rows > 1:
        return f"lower learner.micro_rows below {config.learner.micro_rows}"
    if largest in ("activations", "logits", "buffers"):
        return f"lower data.max_tokens below {config.data.max_tokens}"
    if config.lesson.teacher_learns and config.teacher is not None and config.teacher.lora is None:
        return "train adapters of the teacher alone (teacher.lora), or use smaller models"
    return "use smaller models" if config.student.lora or config.student.init else "set student.lora, or use smaller models"


def _gib(size: int) -> str:
    """A number of GiB, without the unit."""
    return "–" if size == 0 else f"{size / GIB:.1f}" if size >= GIB else f"{size / GIB:.2f}"


def _amount(size: int) -> str:
    """A size with its unit, MiB or GiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
