"""The models of a lesson before they are loaded: whether they can take part in it, and its rows as each of them reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from minidist.config import TeachConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.terms import PKDConfig
from minidist.data.labelled import LabelledText, RowEncoder
from minidist.errors import ConfigError, DataError, ModelError
from minidist.experience.exercises import TaskRows
from minidist.preflight import checks
from minidist.preflight.labels import check_known
from minidist.preflight.space import run_lines
from minidist.types import LabelledRow, TaskFacts

if TYPE_CHECKING:
    from minidist.models.shape import Shape
    from minidist.preflight.facts import ModelFacts


@dataclass(frozen=True)
class LessonModels:
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


def _labels_of(rows: Sequence[LabelledRow]) -> tuple[tuple[int, ...], ...]:
    """The tokens that are predicted in each row, in order."""
    return tuple(tuple(row.targets[row.targets >= 0].tolist()) for row in rows if row.targets is not None)


def _model_facts(config: ModelConfig, where: str) -> "ModelFacts":
    from minidist.preflight.facts import read_model, read_student

    if isinstance(config, StudentConfig):
        return read_student(config, where)
    return replace(read_model(config, where), lora=getattr(config, "lora", None))
