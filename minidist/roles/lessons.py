"""Configuration to the learner of a labelled task. The constructor runs inside the learner's actors."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

from minidist.cluster.cluster import Cluster
from minidist.config.lessons import (
    AloneConfig,
    AssistantsConfig,
    FrozenConfig,
    LGTMConfig,
    MetaConfig,
    MutualConfig,
    OnlineConfig,
    SequenceConfig,
)
from minidist.config.models import LoraConfig, ModelConfig
from minidist.config.teach import TeachConfig
from minidist.config.terms import TermConfig
from minidist.learners.group import Group, OneProcess, ProcessGroup
from minidist.models.classifiers import load_predictor
from minidist.models.device import repeatable
from minidist.teaching.learner import LessonLearner
from minidist.teaching.learning import Adapted, Learning, Training
from minidist.teaching.lesson import Lesson, Phase, PhasedLesson
from minidist.teaching.lgtm import LGTM
from minidist.teaching.meta import Meta
from minidist.teaching.online import Online
from minidist.teaching.pair import Pair
from minidist.teaching.ranks import LessonRanks
from minidist.types import RankGroup, TaskFacts


async def lesson_learner(cluster: Cluster, config: TeachConfig, task: TaskFacts) -> LessonLearner:
    """The learner's ranks, in actors or in this process, as one learner."""
    on_gpu = config.cluster.gpus_of(config.cluster.learner) > 0
    arguments = {"config": config, "task": task, "on_gpu": on_gpu}
    members = await cluster.host_group("learner", make_lesson_learner, config.cluster.learner.ranks, **arguments)
    return members[0] if len(members) == 1 else cast(LessonLearner, LessonRanks(members))


def make_lesson_learner(
    config: TeachConfig, task: TaskFacts, *, on_gpu: bool = False, group: RankGroup | None = None
) -> LessonLearner:
    """One rank of the learner of a lesson, with all its models."""
    repeatable(config.run.deterministic)
    ranks = OneProcess() if group is None else ProcessGroup(group, "cuda" if on_gpu else "cpu")
    lesson = _LESSONS[type(config.lesson)](_Models(config, task, on_gpu, ranks))
    return LessonLearner(lesson, micro_rows=config.learner.micro_rows, group=ranks)


@dataclass(frozen=True)
class _Models:
    """Makes the models of one lesson."""

    config: TeachConfig
    task: TaskFacts
    on_gpu: bool
    group: Group

    def pair(self) -> Pair:
        """Student and teacher, if there is one."""
        config, lesson = self.config, self.config.lesson
        student = self.learning("student", config.student, config.loss, lora=config.student.lora)
        if config.teacher is None or not lesson.needs_teacher:
            return self.paired(student, None)
        loss = lesson.loss if isinstance(lesson, MutualConfig) else None
        return self.paired(student, self.learning("teacher", config.teacher, loss, lora=config.teacher.lora))

    def paired(self, student: Learning, teacher: Learning | None) -> Pair:
        return Pair(student, teacher, self.config.learner.micro_rows, self.group)

    def learning(
        self,
        name: str,
        model: ModelConfig,
        loss: Mapping[str, TermConfig] | None = None,
        *,
        steps: int | None = None,
        lora: LoraConfig | None = None,
        where: str | None = None,
    ) -> Learning:
        """A model by its section. loss: None for a model that is not trained. steps: how many it learns in; None: all.
        where: key of the section's model; None: that of its name."""
        config = self.config
        options = {"seed": config.run.seed, "on_gpu": self.on_gpu, "learns": loss is not None}
        predictor = load_predictor(model, self.task, where or f"{name}.model", **options)
        optimizer = config.learner.optimizer
        if name == "teacher" and isinstance(config.lesson, MutualConfig):
            optimizer = config.lesson.optimizer
        return Learning(
            name,
            predictor,
            loss,
            Training(optimizer, steps or config.run.steps, config.learner.dropout),
            group=self.group,
            adapted=None if lora is None or loss is None else Adapted.inject(predictor, lora, model.model, config.run.seed),
        )


def _plain(models: _Models) -> Lesson:
    return Lesson(models.pair())


def _sequence(models: _Models) -> Lesson:
    """The student with each checkpoint of the teacher in turn."""
    config, lesson, last = models.config, models.config.lesson, models.pair()
    assert isinstance(lesson, SequenceConfig) and config.teacher is not None
    checkpoints = [
        models.learning(f"teacher_{number}", config.teacher.model_copy(update={"model": path}), where=f"lesson.before.{number}")
        for number, path in enumerate(lesson.before)
    ]
    pairs = [*(models.paired(last.student, teacher) for teacher in checkpoints), last]
    ends = [config.run.steps * number // len(pairs) for number in range(1, len(pairs) + 1)]
    return PhasedLesson(last, tuple(Phase(end, pair) for end, pair in zip(ends, pairs, strict=True)))


def _assistants(models: _Models) -> Lesson:
    """Each assistant under the model before it, and the student under the last."""
    config, lesson = models.config, models.config.lesson
    assert isinstance(lesson, AssistantsConfig) and config.teacher is not None
    ends = [*accumulate(assistant.steps for assistant in lesson.assistants)]
    before, phases = models.learning("teacher", config.teacher), list[Phase]()
    for number, assistant in enumerate(lesson.assistants):
        name = f"assistant_{number}"
        options = {"steps": assistant.steps, "lora": assistant.lora, "where": f"lesson.{name.replace('_', 's.')}.model"}
        learner = models.learning(name, assistant, config.loss, **options)
        phases.append(Phase(ends[number], models.paired(learner, before), shared_rows=number > 0))
        before = learner
    steps = config.run.steps - ends[-1]
    student = models.learning("student", config.student, config.loss, steps=steps, lora=config.student.lora)
    last = models.paired(student, before)
    return PhasedLesson(last, (*phases, Phase(config.run.steps, last, shared_rows=True)))


def _online(models: _Models) -> Lesson:
    assert isinstance(models.config.lesson, OnlineConfig)
    return Online(models.pair(), models.config.lesson)


def _meta(models: _Models) -> Lesson:
    assert isinstance(models.config.lesson, MetaConfig)
    return Meta(models.pair(), models.config.lesson)


def _lgtm(models: _Models) -> Lesson:
    assert isinstance(models.config.lesson, LGTMConfig)
    return LGTM(models.pair(), models.config.lesson)


_LESSONS = {
    AloneConfig: _plain,
    FrozenConfig: _plain,
    SequenceConfig: _sequence,
    AssistantsConfig: _assistants,
    OnlineConfig: _online,
    MetaConfig: _meta,
    LGTMConfig: _lgtm,
}
"""What makes each lesson."""
