"""Configuration to roles. These constructors run inside the roles' actors, and the objects they make stay there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minidist.config.learner import LearnerConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.objective import ObjectiveSection
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import (
    HFTeacherConfig,
    LocalTeacherConfig,
    PromptedTeacherConfig,
    ServerTeacherConfig,
    TeacherConfig,
    VLLMTeacherConfig,
)
from minidist.data.rendering import Renderer
from minidist.models.imports import import_less
from minidist.protocols import Learner, RolloutEngine, Teacher
from minidist.types import MAIN, RankGroup

if TYPE_CHECKING:
    from minidist.learners.group import Group
    from minidist.learners.teacher import ResidentTeacher
    from minidist.rollout.vllm.core import VLLMCore


@dataclass(frozen=True)
class RoleContext:
    """The facts of a run that its roles share.

    Args:
        renderer: makes token ids from text.
        vocabulary: width of the softmax that student and teacher share; None: all rows of the head.
        max_tokens: longest sequence that the role meets; None: the model's context.
        seed: of everything the role draws at random.
        steps: optimizer steps of the run.
        deterministic: the same bits in every run.
        on_gpu: the role computes on a GPU.
        split: how vLLM splits the role's model: tensor_parallel, pipeline_parallel and across_nodes of VLLMSettings.
        transfer: gloo, nccl or ipc where the role's weights come over a channel from the learner.
        ratio_max: loop.ratio_max where an earlier student may have written the main stream; None: the current one writes it.
        sleeps: the role holds its devices in turn with others.
        turns: an engine also takes turns with a teacher.
    """

    renderer: Renderer
    vocabulary: int | None = None
    max_tokens: int | None = None
    seed: int = 0
    steps: int = 1
    deterministic: bool = False
    on_gpu: bool = False
    split: Mapping[str, Any] = field(default_factory=dict)
    transfer: str | None = None
    ratio_max: float | None = None
    sleeps: bool = False
    turns: bool = False


@dataclass(frozen=True)
class TeacherSections:
    """Several teachers, by name. by_row: each row of the text has its own; else all of them score all text."""

    configs: Mapping[str, TeacherConfig]
    by_row: bool = True

    @property
    def heads(self) -> dict[str, str]:
        """Of each teacher, the first whose output head is the same: it is held once."""
        first: dict[tuple[str, str], str] = {}
        return {name: first.setdefault((each.model, each.dtype), name) for name, each in self.configs.items()}


@dataclass(frozen=True)
class LearnerSetup:
    """What a learner is made of: the student, the `learner` section, the objective of each stream by name, and the teacher, of
    which the learner holds the head, or all where it learns, or several, whose heads it holds."""

    student: StudentConfig
    config: LearnerConfig
    objectives: Mapping[str, ObjectiveSection]
    teacher: TeacherConfig | TeacherSections | None = None


def make_engine(
    context: RoleContext, model: ModelConfig, rollout: RolloutConfig, *, teacher: TeacherConfig | None = None
) -> RolloutEngine:
    """The rollout engine of `rollout.engine`. With a `teacher`, engine hf holds a copy of it, to write in lockstep."""
    import_less()
    model = model.model_copy(update={"dtype": rollout.dtype or model.dtype})
    if rollout.engine == "hf" and teacher is not None:
        from minidist.rollout.mixed.lockstep import HFPairEngine

        return HFPairEngine(model, teacher, context.renderer, vocabulary=context.vocabulary, on_gpu=context.on_gpu)
    if rollout.engine == "hf":
        from minidist.rollout.hf import HFEngine

        return HFEngine(model, context.renderer, vocabulary=context.vocabulary, on_gpu=context.on_gpu)
    from minidist.rollout.vllm.engine import VLLMEngine, student_settings

    assert context.max_tokens is not None
    settings = student_settings(
        model,
        rollout,
        deterministic=context.deterministic,
        max_tokens=context.max_tokens,
        seed=context.seed,
        on_gpu=context.on_gpu,
        **context.split,
        sleeps=context.sleeps,
        turns=context.turns,
        transfer=context.transfer,
    )
    return VLLMEngine(settings, context.renderer, vocabulary=context.vocabulary)


def make_teacher(
    context: RoleContext, config: TeacherConfig, *, mixing: bool = False, group: RankGroup | None = None
) -> Teacher:
    """The frozen teacher of `teacher.backend`, or one rank of it. `mixing`: it also takes turns with a student."""
    import_less()
    return TEACHERS[type(config)](context, config, mixing, group)


def _hf_teacher(context: RoleContext, config: LocalTeacherConfig, mixing: bool, group: RankGroup | None) -> Teacher:
    from minidist.models.device import repeatable
    from minidist.teachers.hf import HFTeacher

    repeatable(context.deterministic)

    def core() -> "VLLMCore":
        """Transformers cannot take turns: a copy of the teacher in vLLM does."""
        from minidist.rollout.vllm.core import VLLMCore
        from minidist.teachers.vllm import teacher_settings

        settings = teacher_settings(config, max_tokens=context.max_tokens, on_gpu=context.on_gpu, turns=True)
        return VLLMCore(settings, context.renderer, name="turns", vocabulary=context.vocabulary)

    options = {"vocabulary": context.vocabulary, "on_gpu": context.on_gpu}
    return HFTeacher(config, context.renderer, group=group, make_core=core if mixing else None, **options)


def _vllm_teacher(context: RoleContext, config: VLLMTeacherConfig, mixing: bool, group: RankGroup | None) -> Teacher:
    from minidist.teachers.vllm import VLLMHiddenTeacher, VLLMTeacher

    teacher = VLLMTeacher if config.writes else VLLMHiddenTeacher
    return teacher(
        config,
        context.renderer,
        vocabulary=context.vocabulary,
        on_gpu=context.on_gpu,
        **context.split,
        max_tokens=context.max_tokens,
        sleeps=context.sleeps,
        turns=mixing,
    )


def _server_teacher(context: RoleContext, config: ServerTeacherConfig, mixing: bool, group: RankGroup | None) -> Teacher:
    from minidist.teachers.server.teacher import ServerTeacher

    return ServerTeacher(config, context.renderer, vocabulary=context.vocabulary)


TEACHERS: dict[type[TeacherConfig], Callable[[RoleContext, Any, bool, RankGroup | None], Teacher]] = {
    HFTeacherConfig: _hf_teacher,
    PromptedTeacherConfig: _hf_teacher,  # without its prompt, for evaluations
    VLLMTeacherConfig: _vllm_teacher,
    ServerTeacherConfig: _server_teacher,
}
"""What makes the teacher of each backend that is hosted."""


def make_learner(
    context: RoleContext,
    student: StudentConfig,
    config: LearnerConfig,
    objectives: Mapping[str, ObjectiveSection],
    *,
    teacher: TeacherConfig | TeacherSections | None,
    group: RankGroup | None = None,
) -> Learner:
    """One rank of the learner of `learner.backend`, with the teacher's head when the payload is hidden states, or with
    the whole teacher when it learns too."""
    import_less()
    from minidist.learners.deepspeed import student_partitioning
    from minidist.learners.forward import Student
    from minidist.learners.group import OneProcess, ProcessGroup
    from minidist.learners.learner import BACKENDS, LocalLearner
    from minidist.losses.objectives import make_objective
    from minidist.losses.ratios import Corrected
    from minidist.models.device import pick_device, repeatable
    from minidist.models.hub import build_student
    from minidist.models.lora import inject

    repeatable(context.deterministic)
    device, distributed = "cuda" if context.on_gpu else "cpu", BACKENDS[config.backend].distributed
    ranks = ProcessGroup(group or RankGroup(), device) if distributed else OneProcess()
    parts = student_partitioning(config, student.dtype, pick_device(context.on_gpu))
    model = build_student(student, context.renderer.tokenizer, context.seed, context.on_gpu, partitioning=parts)
    adapters = None if student.lora is None else inject(model, student.lora, student.model or "", seed=context.seed)
    if isinstance(teacher, PromptedTeacherConfig):
        resident = _prompted_teacher(context, teacher, config, ranks)
    else:
        resident = _frozen_teacher(context, teacher, model.device)
    made = {name: make_objective(section) for name, section in objectives.items()}
    if context.ratio_max is not None and MAIN in objectives and objectives[MAIN].credited_by is None:
        made[MAIN] = Corrected(made[MAIN], context.ratio_max)  # a credit holds the ratios itself
    learning = Student(model, context.renderer, adapters, context.vocabulary)
    return LocalLearner(learning, config, made, steps=context.steps, teacher=resident, group=ranks)


def _prompted_teacher(
    context: RoleContext, teacher: PromptedTeacherConfig, config: LearnerConfig, ranks: "Group"
) -> "ResidentTeacher":
    """The whole teacher, whose soft prompt is trained."""
    from minidist.methods.promptkd import PromptedTeacher, initial_prompt
    from minidist.models.hub import load_model

    whole = load_model(teacher, "teacher.model", context.on_gpu)
    start = initial_prompt(whole, context.renderer.tokenizer, teacher.prompt)
    return PromptedTeacher(whole, start, teacher.prompt, config, vocabulary=context.vocabulary, group=ranks)


def _frozen_teacher(context: RoleContext, teacher: TeacherConfig | TeacherSections | None, device: Any) -> "ResidentTeacher":
    """The output heads of the teachers that give hidden states."""
    from minidist.learners.teacher import FrozenTeacher, SeveralTeachers
    from minidist.models.heads import load_teacher_head

    if isinstance(teacher, TeacherSections):
        own = {head: teacher.configs[head] for head in teacher.heads.values()}
        hidden = {teacher.heads[name] for name, each in teacher.configs.items() if each.payload == "hidden"}
        heads = {name: load_teacher_head(own[name], context.vocabulary, device) for name in own if name in hidden}
        return SeveralTeachers(heads, tuple(teacher.configs) if teacher.by_row else ())
    if teacher is None or teacher.payload != "hidden":
        return FrozenTeacher()
    return FrozenTeacher(load_teacher_head(teacher, context.vocabulary, device))
