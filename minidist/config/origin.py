"""The checkpoint of a student, or of an assistant, that is cut from its teacher."""

from typing import TypeVar

from minidist.config.distill import DistillConfig
from minidist.config.lessons import AssistantsConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.sft import SftConfig
from minidist.config.teach import TeachConfig

C = TypeVar("C", SftConfig, DistillConfig, TeachConfig)
S = TypeVar("S", bound=StudentConfig)


def with_origin(config: C) -> C:
    """The configuration with the teacher's checkpoint and tokenizer as the student's, where the student is cut from it, and as
    those of assistants that are."""
    teacher = getattr(config, "teacher", None)
    if teacher is None:
        return config
    found = {"student": _cut_from(teacher, config.student)}
    lesson = config.lesson if isinstance(config, TeachConfig) else None
    if isinstance(lesson, AssistantsConfig):
        assistants = [_cut_from(teacher, each) for each in lesson.assistants]
        return config.model_copy(update=found | {"lesson": lesson.model_copy(update={"assistants": assistants})})
    return config.model_copy(update=found)


def _cut_from(teacher: ModelConfig, student: S) -> S:
    if student.init is None or student.model is not None:
        return student
    return student.model_copy(update={"model": teacher.model, "tokenizer": student.tokenizer or teacher.tokenizer})
