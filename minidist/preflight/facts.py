"""Facts of a run: tokenizers, model configurations, shapes and rows, each read once. No weights are read."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from minidist.config.data import QuestionsConfig, RenderConfig, SourceConfig
from minidist.config.models import LoraConfig, ModelConfig, StudentConfig
from minidist.data.examples import Example
from minidist.data.questions import Question, read_questions
from minidist.data.rendering import Renderer
from minidist.data.sources import read_examples, read_prompts
from minidist.errors import ModelError
from minidist.types import Prompt

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from minidist.models.shape import Shape

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFacts:
    """A model as its tokenizer and its configuration describe it. `where`: the key of the configuration that names it."""

    where: str
    tokenizer: "PreTrainedTokenizerBase"
    config: "PretrainedConfig"
    lora: LoraConfig | None = None

    @cached_property
    def shape(self) -> "Shape":
        """Sizes, from a skeleton of the model without weights."""
        from minidist.models.files import refused
        from minidist.models.shape import read_shape

        with refused(f"{self.where}: no model can be built from its config.json"):
            return read_shape(self.config, self.lora)

    @property
    def context(self) -> int:
        """Longest sequence the model takes, tokens."""
        from minidist.models.hub import context_length

        return context_length(self.config)

    @property
    def lines(self) -> list[str]:
        """Lines of the plan on its generation settings."""
        from minidist.models.generation import left_out_line, read_generation

        found = read_generation(Path(self.config.name_or_path), self.where) if self.config.name_or_path else None
        return [left_out_line(self.where, found[1])] if found and found[1] else []

    @property
    def rows(self) -> int:
        """Rows of the embedding, padded ones included."""
        return int(self.config.get_text_config().vocab_size)


@dataclass(frozen=True)
class PairFacts:
    """Student and teacher."""

    student: ModelFacts
    teacher: ModelFacts

    @cached_property
    def vocabulary(self) -> int:
        """Width of the softmax that they share. Raises ModelError where their tokenizers differ."""
        student, teacher = self.student, self.teacher
        return shared_vocabulary(student.tokenizer, teacher.tokenizer, student.rows, teacher.rows)

    @property
    def context(self) -> int:
        """Longest sequence that both models take, tokens."""
        return min(self.student.context, self.teacher.context)


def shared_vocabulary(
    student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase", student_rows: int, teacher_rows: int
) -> int:
    """Width of the softmax that both models share. Raises ModelError, and shows the difference, where their tokenizers differ.

    `student_rows` and `teacher_rows` count the rows of the embeddings, which padding may have widened: ids beyond the narrower
    embedding are padding, and are sliced off before the softmax.
    """
    student_ids, teacher_ids = student.get_vocab(), teacher.get_vocab()
    if student_ids != teacher_ids:
        tokens = student_ids.keys() | teacher_ids.keys()
        token = min((token for token in tokens if student_ids.get(token) != teacher_ids.get(token)), key=str)
        counts = f"{len(student_ids)} and {len(teacher_ids)} tokens"
        found = f"{token!r} is id {student_ids.get(token)} in one and {teacher_ids.get(token)} in the other"
        need = "distillation token by token needs the same one"
        raise ModelError(f"student and teacher have different tokenizers: {counts}, and {found}; {need}")
    for name in ("eos_token_id", "chat_template"):
        left, right = getattr(student, name), getattr(teacher, name)
        if left != right:
            shown = f"{left!r} and {right!r}" if name == "eos_token_id" else "not the same text"
            remedy = "copy one's tokenizer to the other"
            raise ModelError(f"student and teacher tokenizers have different {name}: {shown}; {remedy}")
    rows = min(student_rows, teacher_rows)
    if rows < len(student_ids):
        found = f"a model has {rows} rows of embedding for a tokenizer of {len(student_ids)} tokens"
        raise ModelError(f"{found}; the checkpoint and its tokenizer do not belong together")
    return rows


def read_student(config: StudentConfig) -> ModelFacts:
    """The student, from its checkpoint or from `student.architecture`."""
    from minidist.models.hub import architecture, load_config, tokenizer_of

    trained = load_config(config, "student.model") if config.model is not None else None
    tokenizer = tokenizer_of(config, "student.model")
    return ModelFacts("student.model", tokenizer, trained or architecture(config, tokenizer), config.lora)


def read_model(config: ModelConfig, where: str) -> ModelFacts:
    """A model from its checkpoint."""
    from minidist.models.hub import load_config, tokenizer_of

    found = load_config(config, where)
    return ModelFacts(where, tokenizer_of(config, where), found)


@dataclass(frozen=True)
class Rows(Generic[T]):
    """The usable rows of a source, those left out, and the renderer's counts. `name`: of the source, for people."""

    name: str
    source: SourceConfig
    found: list[T]
    skipped: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def line(self) -> str:
        """A line of the plan."""
        skipped = f", {self.skipped:,} left out" if self.skipped else ""
        counts = "".join(f"; {count:,} {_COUNTED[name]}" for name, count in sorted(self.counts.items()))
        return f"{self.name}: {len(self.found):,} rows of {self.source.path}{skipped}{counts}"


_COUNTED = {
    "rejoined": "answers have other ids after their prompts than in the whole text, with the same decoded text",
    "special": "texts hold special tokens written out (data.special_tokens)",
    "truncated": "texts were cut (data.truncate)",
}


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of all sources of a run, rendered alike."""

    renderer: Renderer
    config: RenderConfig

    def prompts(self, name: str, source: SourceConfig, *, gold: bool = False) -> Rows[Prompt]:
        """`gold`: whether their answers are trained on."""
        return self._rows(name, source, read_prompts, gold=gold)

    def examples(self, name: str, source: SourceConfig, *, max_tokens: int) -> Rows[Example]:
        """Rows to train on. `max_tokens`: of prompt and answer together."""
        return self._rows(name, source, read_examples, max_tokens=max_tokens)

    def questions(self, name: str, source: QuestionsConfig, *, max_tokens: int) -> Rows[Question]:
        """Questions with a fixed set of answers."""
        return self._rows(name, source, read_questions, max_tokens=max_tokens)

    def _rows(self, name: str, source: SourceConfig, read: Callable[..., tuple[list[T], int]], **limits: Any) -> Rows[T]:
        before = self.renderer.counts.copy()
        found, skipped = read(source, self.renderer, max_prompt_tokens=self.config.max_prompt_tokens, **limits)
        return Rows(name, source, found, skipped, self.renderer.counts - before)
