"""The checkpoint of a student that is cut from its teacher."""

from typing import TypeVar

from minidist.config.distill import DistillConfig
from minidist.config.sft import SftConfig
from minidist.config.teach import TeachConfig

C = TypeVar("C", SftConfig, DistillConfig, TeachConfig)


def with_origin(config: C) -> C:
    """The configuration with the teacher's checkpoint and tokenizer as the student's, where the student is cut from it."""
    student, teacher = config.student, getattr(config, "teacher", None)
    if student.init is None or student.model is not None or teacher is None:
        return config
    origin = {"model": teacher.model, "tokenizer": student.tokenizer or teacher.tokenizer}
    return config.model_copy(update={"student": student.model_copy(update=origin)})
