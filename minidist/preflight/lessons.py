"""The plan of `minidist teach`: rows as student and teacher read them, checks of their models, and lines for people."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from minidist.config import CompareLessonsConfig, TeachConfig
from minidist.config.data import SourceConfig
from minidist.config.learner import OptimizerConfig
from minidist.config.lessons import MutualConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.origin import with_origin
from minidist.config.task import MaskedTask, TaskSection
from minidist.config.terms import PKDConfig
from minidist.data.labelled import LabelledText, Masker, RowEncoder, check_labelled, read_labelled, split_feedback
from minidist.errors import ConfigError, DataError, ModelError
from minidist.evaluation.metrics import majority
from minidist.experience.exercises import Exercises, TaskRows
from minidist.preflight import checks
from minidist.preflight.cost import lesson_memory_lines
from minidist.preflight.growth import growth_lines
from minidist.preflight.labels import check_known, held_out_lines, label_lines
from minidist.preflight.memory import LessonModel
from minidist.preflight.precision import precision_lines
from minidist.preflight.space import run_lines
from minidist.run.directory import RunDirectory
from minidist.types import LabelledRow, TaskFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from minidist.models.shape import Shape
    from minidist.preflight.facts import ModelFacts


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
    models = _Models(config, _facts(task))
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


@dataclass(frozen=True)
class _Models:
    """Student and teacher as their tokenizers and configurations describe them."""

    config: TeachConfig
    facts: TaskFacts

    @cached_property
    def student(self) -> "ModelFacts":
        return _model_facts(self.config.student, "student.model")

    @cached_property
    def teacher(self) -> "ModelFacts | None":
        return None if self.config.teacher is None else _model_facts(self.config.teacher, "teacher.model")

    @cached_property
    def others(self) -> "list[ModelFacts]":
        """The models of the lesson beside student and teacher: assistants, or checkpoints of the teacher."""
        lesson, teacher = self.config.lesson, self.config.teacher
        if lesson.type == "assistants":
            found = enumerate(lesson.assistants)
            return [_model_facts(each, f"lesson.assistants.{number}.model") for number, each in found]
        if lesson.type == "sequence" and teacher is not None:
            found = ((number, teacher.model_copy(update={"model": path})) for number, path in enumerate(lesson.before))
            return [_model_facts(each, f"lesson.before.{number}") for number, each in found]
        return []

    @property
    def both(self) -> "list[ModelFacts]":
        return [model for model in (self.student, self.teacher) if model is not None]

    def check(self) -> None:
        """Raise the first reason why the models cannot take part in the lesson."""
        from minidist.models.classifiers import check_task

        for model in [*self.both, *self.others]:
            check_task(model.config, model.tokenizer, self.facts, model.where)
            checks.check_embedding(model)
            if model.context < self.config.data.max_tokens:
                longest = f"data.max_tokens {self.config.data.max_tokens} is more than {model.where} reads, {model.context}"
                raise ConfigError(f"{longest}; set data.max_tokens={model.context}")
        self._check_frozen()
        self._check_pair()
        assert self.shapes  # whose adapters can be injected

    def _check_frozen(self) -> None:
        """Models that are not trained have a head, and models that read another's rows read text as it does."""
        from minidist.models.classifiers import check_trained, reads_alike

        checkpoints = self.others if self.config.lesson.type == "sequence" else []
        for model in [] if self.teacher is None or self.config.lesson.teacher_learns else [self.teacher, *checkpoints]:
            check_trained(model.config, self.facts, model.where)
        reader = self.teacher if self.config.lesson.type == "sequence" else self.student
        for model in self.others:
            if reader is not None and not reads_alike(model.tokenizer, reader.tokenizer):
                other = f"{model.where} has another tokenizer than {reader.where}, whose rows it reads"
                raise ModelError(f"{other}; use models with one tokenizer")

    def _check_pair(self) -> None:
        student, teacher = self.student, self.teacher
        if teacher is None:
            return
        if self.facts.kind in ("tokens", "masked") and student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
            differ = "the tokenizers of student and teacher differ, and their tokens are compared one by one"
            raise ModelError(f"{differ}; use models with one tokenizer")
        if self.config.lesson.type == "assistants":
            chain = [teacher, *self.others, student]
            pairs = list(zip(chain[1:], chain[:-1], strict=True))
        else:
            pairs = [(student, each) for each in [*self.others, teacher]]
        own, of_teacher = self.config.loss, self.config.lesson.teacher_terms
        for key, terms, found in (("loss", own, pairs), ("lesson.loss", of_teacher, [(teacher, student)])):
            for name, term in terms.items():
                if isinstance(term, PKDConfig):
                    for learner, other in found:
                        self._check_widths(f"{key}.{name}", term, learner, other)

    def _check_widths(self, key: str, term: PKDConfig, learner: "ModelFacts", other: "ModelFacts") -> None:
        from minidist.losses.imitation import matched_layers
        from minidist.models.layers import layer_count

        widths = [model.config.get_text_config().hidden_size for model in (learner, other)]
        if widths[0] != widths[1]:
            differ = f"{key} compares hidden states, and {learner.where} has width {widths[0]}, {other.where} {widths[1]}"
            raise ConfigError(f"{differ}; use models of one width, or leave the term out")
        try:
            matched_layers(term.layers, layer_count(learner.config), layer_count(other.config))
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from None

    def rows(self, texts: Sequence[LabelledText]) -> TaskRows:
        """The texts as student and teacher read them."""
        found = [encoder.rows(texts) for encoder in self._encoders]
        if not found[0]:
            kept = f"no row of {len(texts)} has anything to predict within data.max_tokens {self.config.data.max_tokens}"
            raise DataError(f"{kept} in a task of type {self.facts.kind}; raise it, or use longer texts")
        for model, rows in zip(self.both, found, strict=True):
            self._check_rows(model, rows)
        if self.facts.kind == "tokens" and len(set(map(_labels_of, found))) > 1:
            differ = "student and teacher read other tokens of the answers, which are compared one by one"
            raise DataError(f"{differ}; raise data.max_tokens, so that no row is cut, or use models that render text alike")
        return TaskRows(*found)

    def _check_rows(self, model: "ModelFacts", rows: Sequence[LabelledRow]) -> None:
        from minidist.models.classifiers import check_ends

        check_known(rows, model.tokenizer, model.where)
        if model.config.is_encoder_decoder and self.facts.kind in ("classes", "score"):
            check_ends(rows, model.config.eos_token_id)

    @cached_property
    def _encoders(self) -> list[RowEncoder]:
        task, longest = self.config.task, self.config.data.max_tokens
        return [RowEncoder(task, model.tokenizer, longest, bool(model.config.is_encoder_decoder)) for model in self.both]

    @property
    def cut_lines(self) -> list[str]:
        """A line for each model that reads rows without all of their tokens."""
        counts = [(model.where, encoder.counts["cut"]) for model, encoder in zip(self.both, self._encoders, strict=True)]
        longest = f"longer than data.max_tokens {self.config.data.max_tokens} to {{}}, and cut"
        found = [f"{count:,} rows are {longest.format(where)}" for where, count in counts if count]
        lost = self._encoders[0].counts["left out"]
        return [*found, f"{lost:,} rows whose prompts leave no room for an answer are left out"] if lost else found

    @property
    def _sizes(self) -> list[int]:
        return [shape.parameters for shape in self.shapes[: len(self.both)]]

    @cached_property
    def shapes(self) -> "list[Shape]":
        """Of all models, from skeletons. Raises ModelError for adapters that a model cannot have."""
        from minidist.models.classifiers import task_shape

        return [
            task_shape(model.config, self.facts, model.tokenizer, model.lora, f"{model.where.removesuffix('.model')}.lora")
            for model in [*self.both, *self.others]
        ]

    @property
    def lines(self) -> list[str]:
        """A line for each model, and for the task."""
        found = []
        for model, size in zip(self.both, self._sizes, strict=True):
            name = model.where.removesuffix(".model")
            found.append(f"{name}: {model.config.model_type}, {size / 1e6:,.2f} M parameters")
        names = ", ".join(self.facts.names)
        return [*found, *self.student.lines, f"task: {self.facts.kind}" + (f" ({names})" if names else "")]

    def space_lines(self) -> list[str]:
        """What checkpoints and final/ take on the disk."""
        learning = self._sizes if self.config.lesson.teacher_learns else self._sizes[:1]
        model = 4 * sum(learning)
        moments = 0 if self.config.learner.optimizer.type == "sgd" else 2
        finals = 2 if self.config.evaluation.keep == "best" else 1
        return run_lines(self.config.run, model * (2 + moments), {"final": finals * model})


def _memory_lines(models: _Models, rows: TaskRows, feedback: Sequence[LabelledRow]) -> list[str]:
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


def _labels_of(rows: Sequence[LabelledRow]) -> tuple[tuple[int, ...], ...]:
    """The tokens that are predicted in each row, in order."""
    return tuple(tuple(row.targets[row.targets >= 0].tolist()) for row in rows if row.targets is not None)


def _model_facts(config: ModelConfig, where: str) -> "ModelFacts":
    from minidist.preflight.facts import read_model, read_student

    if isinstance(config, StudentConfig):
        return read_student(config, where)
    return replace(read_model(config, where), lora=getattr(config, "lora", None))


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
