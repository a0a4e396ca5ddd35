"""The plan of `minidist teach`: rows as student and teacher read them, checks of their models, and lines for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minidist.config import CompareLessonsConfig, TeachConfig
from minidist.config.data import SourceConfig
from minidist.config.learner import OptimizerConfig
from minidist.config.lessons import MutualConfig
from minidist.config.models import ModelConfig
from minidist.config.origin import with_origin
from minidist.config.task import MaskedTask, TaskSection
from minidist.data.labelled import LabelledText, Masker, check_labelled, read_labelled, split_feedback
from minidist.errors import ConfigError, DataError
from minidist.evaluation.metrics import majority
from minidist.experience.exercises import Exercises, TaskRows
from minidist.preflight import checks
from minidist.preflight.cost import lesson_memory_lines
from minidist.preflight.growth import growth_lines
from minidist.preflight.labels import held_out_lines, label_lines
from minidist.preflight.lesson_models import LessonModels
from minidist.preflight.memory import LessonModel
from minidist.preflight.precision import precision_lines
from minidist.run.directory import RunDirectory
from minidist.types import LabelledRow, TaskFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from minidist.models.shape import Shape


_PROBED = 8  # fewest rows that a probe is fitted on


@dataclass(frozen=True)
class TeachPlan:
    """What a lesson is made from.

    Args:
        facts: the task, for the models.
        exercises: rows to train on and for feedback.
        validation, test: rows to measure on; None where there are none.
        metrics: names of the figures, the first to choose by.
        majority: figures of the most frequent class, or of the mean score, on `test` or, without it, on `validation`.
        tokenizer: the student's, to show rows.
        lines: the plan for people.
    """

    facts: TaskFacts
    exercises: Exercises
    validation: TaskRows | None
    test: TaskRows | None
    metrics: list[str]
    majority: dict[str, float]
    tokenizer: "PreTrainedTokenizerBase"
    lines: list[str]

    def labelled(self) -> dict[str, Sequence[LabelledRow]]:
        """The rows of each source, as the student reads them."""
        found = {"train": self.exercises.train.student, "feedback": self.exercises.feedback}
        found |= {
            name: rows.student for name, rows in (("validation", self.validation), ("test", self.test)) if rows is not None
        }
        return {name: rows for name, rows in found.items() if rows}

    def label(self, row: LabelledRow) -> str:
        """The label of a row, for people."""
        if row.targets is not None:
            return f"{int((row.targets >= 0).sum())} tokens"
        return self.facts.names[int(row.label)] if self.facts.names else f"{row.label:g}"


def plan_teach(config: TeachConfig) -> TeachPlan:
    written, config = config, with_origin(config)
    task, data = config.task, config.data
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    checks.check_files(written, _names(config), ())
    for source in filter(None, sources.values()):
        check_labelled(task, source)
    models = LessonModels(config, _facts(task))
    models.check()
    texts = {name: read_labelled(task, source) for name, source in sources.items() if source is not None}
    rows = {name: models.rows(found) for name, (found, _) in texts.items()}
    described = [*models.lines, *(_rows_line(name, sources[name], rows[name], texts[name][1]) for name in texts)]
    described += [*models.cut_lines, *label_lines(task, texts["train"][0])]
    for name in [name for name in texts if name != "train"]:
        described += held_out_lines(texts["train"][0], texts[name][0], name)
    train, feedback = _split(config, texts["train"][0], rows["train"])
    _check_traced(config, train)
    _check_layers(config, rows.get("validation"))
    if feedback:
        described.append(
            f"feedback: {len(feedback):,} rows of data.train held out, of {len(train):,} that are left to train on"
        )
    tested = texts.get("test", texts.get("validation"))
    labels = np.array([text.label for text in texts["train"][0]])
    most = _majority(task, labels, tested[0]) if tested is not None else {}
    described += [f"majority: {name} {value:.4g}" for name, value in most.items()]
    described += [_lesson_line(config, len(train)), *_memory_lines(models, train, feedback), *models.space_lines()]
    described += growth_lines(written)
    described += precision_lines(config.cluster, {"student.dtype": config.student.dtype})
    masker = Masker.of(task, models.student.tokenizer, config.run.seed) if isinstance(task, MaskedTask) else None
    return TeachPlan(
        models.facts,
        Exercises(train, feedback, config.learner.batch_rows, config.learner.feedback_rows, config.run.seed, masker),
        _to_measure(rows.get("validation"), config.evaluation.rows, masker),
        _to_measure(rows.get("test"), None, masker),
        list(task.metrics),
        most,
        models.student.tokenizer,
        described,
    )


@dataclass(frozen=True)
class LessonsPlan:
    """The plan of a comparison of lessons, for people."""

    lines: list[str]


def plan_lessons(config: CompareLessonsConfig) -> LessonsPlan:
    """Plans every cell as a lesson of its own, with the first seed."""
    RunDirectory(config).check()
    found: list[str] = []
    for name in config.cells:
        plan = plan_teach(config.cell(name, config.seeds[0]))
        found += plan.lines if not found else []
        found.append(f"cells.{name}: " + next(line for line in plan.lines if line.startswith("lesson ")))
    return LessonsPlan([*found, f"{len(config.cells)} cells x {len(config.seeds)} seeds, in this process"])


def _facts(task: TaskSection) -> TaskFacts:
    return TaskFacts(task.kind, tuple(task.class_names), getattr(task, "normalise", True))


def _names(config: TeachConfig) -> dict[str, str | None]:
    """Directories and hub names of all models, by their keys."""
    sections: dict[str, ModelConfig] = {"student": config.student}
    if config.teacher is not None:
        sections["teacher"] = config.teacher
    if config.lesson.type == "assistants":
        sections |= {f"lesson.assistants.{number}": each for number, each in enumerate(config.lesson.assistants)}
    found = {f"{name}.{key}": getattr(each, key) for name, each in sections.items() for key in ("model", "tokenizer")}
    if config.lesson.type == "sequence":
        found |= {f"lesson.before.{number}": path for number, path in enumerate(config.lesson.before)}
    return found


def _memory_lines(models: LessonModels, rows: TaskRows, feedback: Sequence[LabelledRow]) -> list[str]:
    """What each process of the learner needs. rows, feedback: those of training."""
    config, has_teacher = models.config, models.teacher is not None
    learner, ranks = config.learner, config.cluster.learner.ranks
    held_out = learner.feedback_rows if config.lesson.needs_feedback else 0
    drawn = [-(-learner.batch_rows // ranks), -(-held_out // ranks)]  # of the student; the teacher reads no feedback
    read = [[*rows.student, *feedback], *([rows.teacher] if has_teacher else [])]
    longest = [max(map(_length, each)) for each in read]
    found = []
    for number, shape in enumerate(models.shapes):
        teaches = number == 1 and has_teacher
        tokens = min(learner.micro_rows, drawn[0] if teaches else max(drawn)) * longest[int(teaches)]
        found.append(
            LessonModel(
                shape, _optimizer(config, number, teaches), tokens, _outputs(models.facts, shape, tokens, longest[int(teaches)])
            )
        )
    return lesson_memory_lines(config, found)


def _optimizer(config: TeachConfig, number: int, teaches: bool) -> OptimizerConfig | None:
    """The optimizer of a model by its number: student, teacher, others; None where it is not trained."""
    lesson = config.lesson
    if teaches:
        return lesson.optimizer if isinstance(lesson, MutualConfig) else None
    return config.learner.optimizer if number == 0 or lesson.type == "assistants" else None


def _outputs(facts: TaskFacts, shape: "Shape", tokens: int, longest: int) -> int:
    """Logits of a forward pass of `tokens` in rows of `longest`."""
    if facts.kind in ("classes", "score"):
        return tokens // longest * max(1, len(facts.names))
    return tokens * shape.vocabulary


def _length(row: LabelledRow) -> int:
    """Tokens that a model reads of a row: with each of its choices, where it has them."""
    return len(row.tokens) * max(1, len(row.choices)) + sum(map(len, row.choices))


def _split(config: TeachConfig, texts: Sequence[LabelledText], rows: TaskRows) -> tuple[TaskRows, Sequence[LabelledRow]]:
    """Rows to train on, and rows held out of them as the student reads them."""
    held = config.data.feedback
    if len(rows) < config.learner.batch_rows:
        few = f"data.train has {len(rows)} rows, fewer than the learner.batch_rows {config.learner.batch_rows} of a step"
        raise DataError(f"{few}; lower learner.batch_rows")
    if held is None:
        return rows, ()
    if len(texts) != len(rows):
        raise ConfigError(
            f"data.feedback holds rows of data.train out, and task.type {config.task.kind} cuts texts; leave it out"
        )
    kept, out = split_feedback(texts, held.share, seed=held.seed, classes=bool(config.task.class_names))
    if not kept or len(out) < config.cluster.learner.ranks:
        raise DataError(f"data.feedback.share {held.share:g} of {len(texts)} rows leaves no rows on one side; change the share")
    for key, side, count in (("batch_rows", "to train on", len(kept)), ("feedback_rows", "for feedback", len(out))):
        if (wanted := getattr(config.learner, key)) > count and (key == "batch_rows" or config.lesson.needs_feedback):
            few = f"data.feedback.share {held.share:g} leaves {count} of {len(texts)} rows {side}"
            raise DataError(f"{few}, fewer than learner.{key} {wanted}; change the share, or lower learner.{key}")
    return rows.take(kept), [rows.student[position] for position in out]


def _check_layers(config: TeachConfig, rows: TaskRows | None) -> None:
    """A comparison layer by layer has rows to fit its probes on."""
    if config.evaluation.layers is not None and rows is not None and len(rows) < _PROBED:
        few = f"evaluation.layers fits probes on data.validation, which has {len(rows)} rows"
        raise DataError(f"{few}; expected {_PROBED} or more, or leave evaluation.layers out")


def _check_traced(config: TeachConfig, train: TaskRows) -> None:
    """The traced rows are trained on."""
    known = {row.index for row in train.student}
    missing = [number for number in (config.trace.rows if config.trace else []) if number not in known]
    if missing:
        where = f"trace.rows names row {missing[0]}, which is not in data.train, or is held out for feedback"
        raise ConfigError(f"{where}; name another row, or change data.feedback.seed")


def _to_measure(rows: TaskRows | None, count: int | None, masker: Masker | None) -> TaskRows | None:
    """The first `count` rows, of which masked ones are hidden once, alike in every evaluation."""
    if rows is None:
        return None
    first = rows.take(range(min(len(rows), count or len(rows))))
    if masker is None:
        return first
    hidden = [masker(row, 0) for row in first.student]
    return TaskRows(hidden, hidden if first.teacher else ())


def _majority(task: TaskSection, labels: Any, tested: Sequence[LabelledText]) -> dict[str, float]:
    if task.kind in ("tokens", "masked"):
        return {}
    return majority(task.metrics, labels, np.array([text.label for text in tested]), scores=task.kind == "score")


def _rows_line(name: str, source: SourceConfig | None, rows: TaskRows, skipped: int) -> str:
    assert source is not None
    longest = max(len(row.tokens) for row in rows.student)
    left_out = f", {skipped:,} left out" if skipped else ""
    return f"{name}: {len(rows):,} rows of {source.path}{left_out}, up to {longest} tokens"


def _lesson_line(config: TeachConfig, rows: int) -> str:
    steps, batch = config.run.steps, config.learner.batch_rows
    terms = " + ".join(f"{term.weight:g} {name}" for name, term in config.loss.items())
    passes = steps * batch / rows
    return f"lesson {config.lesson.type}: {steps} steps of {batch} rows ({passes:.2g} passes); loss {terms}"
