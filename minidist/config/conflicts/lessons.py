"""Conflicts of a lesson: with its teacher, its loss terms, its task, and the models that learn."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from minidist.config.conflicts.learner import initial
from minidist.config.terms import GroupedSection, SinkhornTermConfig

if TYPE_CHECKING:
    from minidist.config import TeachConfig
    from minidist.config.models import ModelConfig


def teach(c: "TeachConfig") -> Iterator[str]:
    """All conflicts of a lesson."""
    yield from initial(c)
    yield from lesson(c)
    yield from terms(c)
    yield from learning_models(c)
    for key in ("batch_rows", "feedback_rows"):
        rows, ranks = getattr(c.learner, key), c.cluster.learner.ranks
        if rows % ranks:
            yield f"learner.{key} {rows} is not divided by cluster.learner.ranks {ranks}; set it to a multiple"
    for name in ("train", "validation", "test"):
        if (source := getattr(c.data, name)) is not None and (key := source.used_elsewhere):
            yield f"data.{name}.{key} is not used, since task names the columns of teach; leave it out, and set those of task"
    if c.data.validation is None and (c.evaluation.every or c.evaluation.keep == "best"):
        yield "evaluation.every and evaluation.keep=best need data.validation: rows to measure on"
    if c.evaluation.layers is not None:
        yield from _layers(c)
    if c.evaluation.keep == "best" and c.evaluation.every is None:
        yield "evaluation.keep=best needs evaluation.every: the steps between two evaluations"


def lesson(c: "TeachConfig") -> Iterator[str]:
    """Between `lesson`, `teacher`, `loss` and the rows held out."""
    kind, imitates = f"lesson.type {c.lesson.type}", [name for name, term in c.loss.items() if term.needs_teacher]
    if c.lesson.needs_teacher and c.teacher is None:
        yield f"{kind} needs a teacher; set teacher.model, or lesson.type=alone"
    if not c.lesson.needs_teacher and imitates:
        yield f"loss.{imitates[0]} imitates a teacher, and {kind} has none; set lesson.type=frozen, or leave the term out"
    if not c.lesson.needs_teacher and c.teacher is not None:
        yield f"{kind} uses no teacher; set lesson.type=frozen, or leave teacher out"
    if c.lesson.needs_feedback and c.data.feedback is None:
        held = "judges teaching on rows that nobody is trained on"
        yield f"{kind} {held}; set data.feedback={{}}, which holds rows of data.train out"
    if c.lesson.type == "meta" and c.learner.dropout:
        yield f"{kind} differentiates through the student's step, which dropout would draw anew; set learner.dropout=false"
    if c.trace is not None and not c.lesson.measures_influence:
        yield f"trace follows influence, which {kind} does not measure; set lesson.type=lgtm, or leave trace out"
    if c.trace is not None and not c.trace.sample and not c.trace.rows:
        yield "trace.sample is 0 and trace.rows names no row; set one of them, or leave trace out"
    if c.lesson.type == "lgtm" and c.lesson.influence != "explicit" and c.lesson.coefficient and not _imitates(c):
        side = "loss" if c.lesson.influence == "reweight" or c.lesson.through == "loss" else "lesson.loss"
        yield f"lesson.influence {c.lesson.influence} needs a term that imitates in {side}; add one, such as kd"
    if c.lesson.type == "assistants" and sum(each.steps for each in c.lesson.assistants) >= c.run.steps:
        yield f"lesson.assistants leave no step of run.steps {c.run.steps} for the student; raise run.steps"
    if c.lesson.type == "sequence" and len(c.lesson.before) >= c.run.steps:
        yield f"lesson.before has more checkpoints than run.steps {c.run.steps}; raise run.steps"


def _imitates(c: "TeachConfig") -> bool:
    """Whether the loss whose influence LGTM follows compares student and teacher."""
    assert c.lesson.type == "lgtm"
    of_student = c.lesson.influence == "reweight" or c.lesson.through == "loss"
    return any(term.needs_teacher for term in (c.loss if of_student else c.lesson.teacher_terms).values())


def terms(c: "TeachConfig") -> Iterator[str]:
    """Between each loss term, the task, and how a step's rows are divided."""
    losses = {"loss": c.loss, "lesson.loss": c.lesson.teacher_terms}
    for key, named in losses.items():
        # The teacher of a lesson of type meta learns from the held-out loss alone.
        unused = key == "lesson.loss" and (not c.lesson.teacher_learns or c.lesson.type == "meta")
        if not unused and not any(term.weight for term in named.values()):
            yield f"{key} has no term with a weight above 0, so that nothing would be learned; give one a weight"
    for key, term in ((f"{where}.{name}", term) for where, named in losses.items() for name, term in named.items()):
        if c.task.kind == "score" and not term.for_scores:
            yield f"{key} (type {term.type}) compares classes, and the task's labels are numbers; set type mse"
        if c.task.kind == "score" and isinstance(term, SinkhornTermConfig) and term.sample_wise:
            yield f"{key}.sample_wise transports between classes, and the task's labels are numbers; leave it out"
        if c.task.kind in ("tokens", "masked") and not term.for_tokens:
            yield f"{key} (type {term.type}) does not serve tokens; use cross_entropy or divergence"
        if isinstance(term, GroupedSection) and term.grouped:
            part = term.group_rows or c.learner.batch_rows // c.cluster.learner.ranks
            if part < 2:
                yield f"{key} compares the rows of a group, and a rank has one row a step; raise learner.batch_rows"
            whole = c.learner.micro_rows % part == 0 and c.learner.batch_rows % (part * c.cluster.learner.ranks) == 0
            if not whole:
                groups = f"{key} compares groups of {part} rows, which learner.micro_rows {c.learner.micro_rows} or"
                divided = f"learner.batch_rows {c.learner.batch_rows} on {c.cluster.learner.ranks} ranks would cut"
                yield f"{groups} {divided}; set {key}.group_rows to a divisor of both"


def learning_models(c: "TeachConfig") -> Iterator[str]:
    """Of the models that learn: their precision and their adapters."""
    learning: dict[str, ModelConfig] = {"student": c.student}
    if c.teacher is not None and c.lesson.teacher_learns:
        learning["teacher"] = c.teacher
    for name, model in learning.items():
        if model.dtype != "float32":
            yield f"{name}.dtype {model.dtype} would round small steps away; set {name}.dtype=float32"
    for name, model in (("student", c.student), ("teacher", c.teacher)):
        if model is not None and model.lora is not None and model.lora.save == "adapter":
            yield f"{name}.lora.save is adapter, and teach writes whole models; set {name}.lora.save=merged"
    if c.teacher is not None and c.teacher.lora is not None and not c.lesson.teacher_learns:
        yield f"teacher.lora trains a teacher, and in lesson.type {c.lesson.type} it stays as it is; leave teacher.lora out"


def _layers(c: "TeachConfig") -> Iterator[str]:
    """Of a comparison of student and teacher layer by layer."""
    if c.data.validation is None or c.teacher is None or c.lesson.type == "assistants":
        yield "evaluation.layers compares student and teacher; set teacher and data.validation, and no lesson of assistants"
    if c.task.kind not in ("classes", "score"):
        yield f"evaluation.layers reads states of rows with one label, and task.type is {c.task.kind}; leave it out"
