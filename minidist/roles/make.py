"""Configuration to roles: these constructors run inside the roles' actors, and what they make stays there."""

import os
from typing import TYPE_CHECKING, Any

from minidist.config.learner import LearnerConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import SoftPromptConfig, TeacherConfig
from minidist.data.rendering import Renderer
from minidist.losses.targets import Objective
from minidist.protocols import Learner, RolloutEngine, Teacher
from minidist.types import RankGroup

if TYPE_CHECKING:
    from minidist.learners.group import Alone
    from minidist.methods.promptkd import PromptedTeacher


def make_engine(
    model: ModelConfig,
    rollout: RolloutConfig,
    renderer: Renderer,
    max_tokens: int,
    seed: int,
    vocabulary: int | None,
    on_gpu: bool,
    tensor_parallel: int = 1,
    deterministic: bool = False,
    teacher: TeacherConfig | None = None,
) -> RolloutEngine:
    """The rollout engine of `rollout.engine`, its model split over `tensor_parallel` devices. `teacher`: engine hf holds a copy
    of its own, to write with."""
    if rollout.engine == "hf" and teacher is not None:
        from minidist.rollout.mixed.lockstep import LockstepEngine

        return LockstepEngine(model, teacher, renderer, vocabulary=vocabulary, on_gpu=on_gpu)
    if rollout.engine == "hf":
        from minidist.rollout.hf import HFEngine

        return HFEngine(model, renderer, vocabulary=vocabulary, on_gpu=on_gpu)
    from minidist.rollout.vllm.engine import VLLMEngine

    return VLLMEngine(
        model,
        rollout,
        renderer,
        max_tokens=max_tokens,
        seed=seed,
        vocabulary=vocabulary,
        on_gpu=on_gpu,
        tensor_parallel=tensor_parallel,
        deterministic=deterministic,
    )


def make_teacher(
    config: TeacherConfig,
    renderer: Renderer,
    vocabulary: int | None,
    on_gpu: bool,
    tensor_parallel: int = 1,
    max_tokens: int | None = None,
    deterministic: bool = False,
    group: RankGroup | None = None,
    mixing: bool = False,
) -> Teacher:
    """The frozen teacher of `teacher.backend`, or one rank of it; `max_tokens` is the longest sequence it will see, None the
    model's context. `mixing`: it also takes turns with a student; one in transformers gets a vLLM engine beside it for that."""
    if config.backend == "vllm":
        from minidist.teachers.vllm import VLLMTeacher

        return VLLMTeacher(
            config,
            renderer,
            vocabulary=vocabulary,
            on_gpu=on_gpu,
            tensor_parallel=tensor_parallel,
            max_tokens=max_tokens,
        )
    if config.backend == "server":
        from minidist.teachers.server.teacher import ServerTeacher

        return ServerTeacher(config, renderer, vocabulary=vocabulary)
    from minidist.models.device import repeatable
    from minidist.teachers.hf import HFTeacher

    repeatable(deterministic)
    core = None
    if mixing:
        from minidist.rollout.vllm.core import VLLMCore
        from minidist.teachers.vllm import teacher_settings

        settings = teacher_settings(config, max_tokens=max_tokens, on_gpu=on_gpu)
        core = VLLMCore(settings, renderer, name="turns", vocabulary=vocabulary)
    return HFTeacher(config, renderer, vocabulary=vocabulary, on_gpu=on_gpu, group=group, core=core)


def make_learner(
    student: StudentConfig,
    teacher: TeacherConfig | None,
    renderer: Renderer,
    config: LearnerConfig,
    objectives: dict[str, dict[str, Any]],
    steps: int,
    seed: int,
    vocabulary: int | None,
    on_gpu: bool,
    deterministic: bool = False,
    group: RankGroup | None = None,
) -> Learner:
    """One rank of the learner of `learner.backend`, with the teacher's head when the payload is hidden states, or with
    the teacher itself when it learns along."""
    from minidist.learners.group import Alone, Joined
    from minidist.learners.learner import SingleLearner
    from minidist.losses.objectives import make_objective
    from minidist.models.device import repeatable
    from minidist.models.heads import load_teacher_head
    from minidist.models.hub import build_student
    from minidist.models.lora import inject

    repeatable(deterministic)
    kind, joined = SingleLearner, Alone()
    if config.backend == "deepspeed":
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
        from minidist.learners.deepspeed import DeepSpeedLearner

        kind, joined = DeepSpeedLearner, Joined(group or RankGroup(), "cuda" if on_gpu else "cpu")
    model = build_student(student, renderer.tokenizer, seed, on_gpu)
    adapters = None if student.lora is None else inject(model, student.lora, student.model or "", seed=seed)
    tutor, head = None, None
    if teacher is not None and teacher.prompt is not None:
        tutor = make_prompted(
            teacher, teacher.prompt, renderer, config, steps=steps, vocabulary=vocabulary, on_gpu=on_gpu, group=joined
        )
    elif teacher is not None and teacher.payload == "hidden":
        head = load_teacher_head(teacher, vocabulary)
    made: dict[str, Objective] = {name: make_objective(**options) for name, options in objectives.items()}
    options: dict[str, Any] = {"steps": steps, "teacher_head": head, "vocabulary": vocabulary, "adapters": adapters}
    return kind(model, renderer, config, made, tutor=tutor, group=joined, **options)


def make_prompted(
    teacher: TeacherConfig,
    prompt: SoftPromptConfig,
    renderer: Renderer,
    config: LearnerConfig,
    *,
    steps: int,
    vocabulary: int | None,
    on_gpu: bool,
    group: "Alone",
) -> "PromptedTeacher":
    """A whole copy of the teacher for this rank, and the prompt it starts with."""
    from minidist.methods.promptkd import PromptedTeacher, initial_prompt
    from minidist.models.hub import load_model

    model = load_model(teacher, "teacher.model", on_gpu)
    start = initial_prompt(model, renderer.tokenizer, prompt)
    return PromptedTeacher(model, start, prompt, config, steps=steps, vocabulary=vocabulary, group=group)
