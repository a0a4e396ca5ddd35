"""Learners of tiny models, in this process and plain torch."""

from typing import Any

from transformers import PreTrainedModel

from minidist.config.learner import LearnerConfig
from minidist.learners.learner import LocalLearner
from minidist.learners.teacher import FrozenTeacher, ResidentTeacher
from minidist.learners.weights import Student
from minidist.losses.targets import Objective
from minidist.models.heads import on_device
from minidist.types import TeacherHead
from tests.support.tiny import tiny_renderer


def head_of_teacher(teacher: PreTrainedModel) -> TeacherHead:
    """A tiny teacher's output head, as its checkpoint would give it."""
    return TeacherHead(teacher.get_output_embeddings().weight.detach().numpy())


def local_learner(
    model: PreTrainedModel,
    config: LearnerConfig,
    objectives: dict[str, Objective],
    *,
    steps: int = 10,
    teacher: TeacherHead | ResidentTeacher | None = None,
    **student: Any,
) -> LocalLearner:
    """A learner of `model`; `student`: further fields of `Student`."""
    if isinstance(teacher, TeacherHead):
        teacher = FrozenTeacher(on_device(teacher, model.device))
    config = config.model_copy(update={"backend": "single"})
    return LocalLearner(Student(model, tiny_renderer(), **student), config, objectives, steps=steps, teacher=teacher)
