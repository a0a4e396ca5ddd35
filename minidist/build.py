"""Configuration to roles: these constructors run inside the roles' actors, and what they make stays there."""

import os
from pathlib import Path
from typing import Any

from minidist.config.learning import LearnerConfig, RolloutConfig
from minidist.config.models import ModelConfig, StudentConfig, TeacherConfig
from minidist.data.rendering import Renderer
from minidist.protocols import Learner, Objective, RolloutEngine, Teacher


def make_engine(
    model: ModelConfig,
    rollout: RolloutConfig,
    renderer: Renderer,
    max_tokens: int,
    seed: int,
    vocabulary: int | None,
    gpus: int,
    tensor_parallel: int = 1,
) -> RolloutEngine:
    """The rollout engine of `rollout.engine`, its model split over `tensor_parallel` devices."""
    if rollout.engine == "hf":
        from minidist.rollout.hf import HFEngine

        return HFEngine(model, renderer, vocabulary=vocabulary, gpus=gpus)
    from minidist.rollout.vllm import VLLMEngine

    return VLLMEngine(
        model,
        rollout,
        renderer,
        max_tokens=max_tokens,
        seed=seed,
        vocabulary=vocabulary,
        gpus=gpus,
        tensor_parallel=tensor_parallel,
    )


def make_teacher(
    config: TeacherConfig,
    renderer: Renderer,
    vocabulary: int | None,
    gpus: int,
    shards: int = 1,
    max_tokens: int | None = None,
) -> Teacher:
    """The frozen teacher of `teacher.backend`; `max_tokens` is the longest sequence it will see, None the model's context."""
    if config.backend == "vllm":
        from minidist.teachers.vllm import VLLMTeacher

        return VLLMTeacher(config, renderer, vocabulary=vocabulary, gpus=gpus, shards=shards, max_tokens=max_tokens)
    if config.backend == "server":
        from minidist.teachers.http import ServerTeacher

        return ServerTeacher(config, renderer, vocabulary=vocabulary)
    from minidist.teachers.hf import HFTeacher

    return HFTeacher(config, renderer, vocabulary=vocabulary, gpus=gpus)


def make_learner(
    student: StudentConfig,
    teacher: TeacherConfig | None,
    renderer: Renderer,
    config: LearnerConfig,
    objectives: dict[str, dict[str, Any]],
    steps: int,
    seed: int,
    vocabulary: int | None,
    gpus: int,
) -> Learner:
    """The learner of `learner.backend`, with the teacher's head when the payload is hidden states."""
    from minidist.learners.single import SingleLearner
    from minidist.losses.objectives import make_objective
    from minidist.modeling import build_student
    from minidist.teachers.head import load_teacher_head

    kind = SingleLearner
    if config.backend == "deepspeed":
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpus else "cpu")
        from minidist.learners.deepspeed import DeepSpeedLearner

        kind = DeepSpeedLearner
    model = build_student(student, renderer.tokenizer, seed, gpus)
    head = load_teacher_head(teacher, vocabulary) if teacher is not None and teacher.payload == "hidden" else None
    made: dict[str, Objective] = {name: make_objective(**options) for name, options in objectives.items()}
    return kind(model, renderer, config, made, steps=steps, teacher_head=head)


def same_architecture(left: Path, right: Path) -> bool:
    """Whether two checkpoints differ in their weights alone."""
    from transformers import AutoConfig

    ignored = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
    shapes = [
        {key: value for key, value in AutoConfig.from_pretrained(path).to_dict().items() if key not in ignored}
        for path in (left, right)
    ]
    return shapes[0] == shapes[1]
