"""Learners of tiny models, in this process and plain torch."""

from typing import Any

from transformers import PreTrainedModel

from minidist.config.learner import LearnerConfig
from minidist.learners.forward import Student
from minidist.learners.learner import LocalLearner
from minidist.learners.teacher import FrozenTeacher, ResidentTeacher
from minidist.losses.chunked import LinearHead
from minidist.losses.targets import Objective
from tests.support.tiny import tiny_renderer


def head_of_teacher(teacher: PreTrainedModel) -> LinearHead:
    """A tiny teacher's output head, as its checkpoint would give it."""
    return LinearHead(teacher.get_output_embeddings().weight.detach())


def local_learner(
    model: PreTrainedModel,
    config: LearnerConfig,
    objectives: dict[str, Objective],
    *,
    steps: int = 10,
    teacher: LinearHead | ResidentTeacher | None = None,
    **student: Any,
) -> LocalLearner:
    """A learner of `model`; `student`: further fields of `Student`."""
    if isinstance(teacher, LinearHead):
        teacher = FrozenTeacher(teacher)
    config = config.model_copy(update={"backend": "single"})
    return LocalLearner(Student(model, tiny_renderer(), **student), config, objectives, steps=steps, teacher=teacher)
