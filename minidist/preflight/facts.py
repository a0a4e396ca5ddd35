"""Facts of a run: tokenizers, model configurations, shapes and rows, each read once. No weights are read."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from minidist.config.data import QuestionsConfig, RenderConfig, SourceConfig
from minidist.config.models import InitConfig, LoraConfig, ModelConfig, StudentConfig
from minidist.config.teacher import TeacherConfig
from minidist.config.trees import read_text
from minidist.data.contexts import ContextReader
from minidist.data.examples import Example
from minidist.data.questions import Question, read_questions
from minidist.data.rendering import Renderer
from minidist.data.routes import TeacherColumn
from minidist.data.sources import read_examples, read_prompts
from minidist.errors import ConfigError, ModelError
from minidist.models.imports import import_less
from minidist.preflight.vocabulary import Meanings, meanings, shared_ids, teacher_ids, used_ids
from minidist.types import Prompt, Vocabulary

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from minidist.models.shape import Shape

T = TypeVar("T", Prompt, Example, Question)


@dataclass(frozen=True)
class ModelFacts:
    """A model as its tokenizer and its configuration describe it. `where`: the key of the configuration that names it;
    `stops`: ids at which its files end an answer. `cut`: a line on the layers of its checkpoint that it has; None: all."""

    where: str
    tokenizer: "PreTrainedTokenizerBase"
    config: "PretrainedConfig"
    lora: LoraConfig | None = None
    stops: frozenset[int] = frozenset()
    cut: str | None = None

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
        """Lines of the plan on the layers that it is cut to, and on its generation settings."""
        from minidist.models.generation import left_out_line, read_generation

        name = self.config.name_or_path
        found = read_generation(Path(name), self.where) if name else None
        return ([] if self.cut is None else [self.cut]) + ([left_out_line(self.where, found[1])] if found and found[1] else [])

    @property
    def rows(self) -> int:
        """Rows of the embedding, padded ones included."""
        return int(self.config.get_text_config().vocab_size)

    @cached_property
    def meanings(self) -> Meanings:
        """What each id means to the model."""
        return meanings(self.tokenizer, self.rows)


@dataclass(frozen=True)
class PairFacts:
    """Student and teacher. `shared`: the ids that the student has in common with all of several teachers; None: one teacher."""

    student: ModelFacts
    teacher: ModelFacts
    shared: Vocabulary | None = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The ids that both have. Raises ModelError where one of them means two things."""
        return self.shared or shared_ids(self.student.meanings, self.teacher.meanings)

    @property
    def stops(self) -> set[int]:
        """The shared ids at which the student's files end an answer."""
        return {index for index in self.student.stops if index in self.student.meanings and index in self.teacher.meanings}

    def check_ids(self, where: str, ids: Iterable[int]) -> None:
        """Raise ModelError unless both models have all of the ids, which the text of `where` uses."""
        for model in (self.student, self.teacher):
            missing = sorted({int(index) for index in ids} - model.meanings.keys())
            if missing:
                raise ModelError(f"{where}: {self._lack(model, missing[0])}")

    def check_teacher_ids(self, where: str, ids: Iterable[int]) -> None:
        """Raise ModelError unless the teacher has all of the ids, which its own prompts use."""
        if missing := sorted({int(index) for index in ids} - self.teacher.meanings.keys()):
            found = f"id {missing[0]} is used in teacher.context, and {self.teacher.where} has {self.teacher.rows} rows"
            raise ModelError(f"{where}: {found} of embedding; widen it (resize_token_embeddings)")

    def _lack(self, model: ModelFacts, index: int) -> str:
        """A sentence on an id in use that `model` does not have."""
        token = str(self.student.tokenizer.convert_ids_to_tokens(index))
        found = f"id {index} ({token!r}) is used, and "
        if index in model.tokenizer.get_vocab().values():
            return f"{found}{model.where} has {model.rows} rows of embedding; widen it (resize_token_embeddings)"
        means = self.student.meanings.get(index, token.encode())
        moved = next((other for other, meaning in model.meanings.items() if meaning == means), None)
        place = "does not have it" if moved is None else f"has it at id {moved}"
        cure = "render with a chat template whose tokens both have (data.template_from), or set models with the same tokens"
        return f"{found}the tokenizer of {model.where} {place}; {cure}"

    @property
    def context(self) -> int:
        """Longest sequence that both models take, tokens."""
        return min(self.student.context, self.teacher.context)


def rendering_tokenizer(config: RenderConfig, student: ModelFacts, teacher: ModelFacts) -> "PreTrainedTokenizerBase":
    """The student's tokenizer with the chat template that data.template_from names."""
    if config.template_from == "student":
        return student.tokenizer
    tokenizer = copy(student.tokenizer)
    tokenizer.chat_template = _template(config.template_from, teacher)
    return tokenizer


def _template(name: str, teacher: ModelFacts) -> Any:
    """The chat template of the teacher's tokenizer, of a tokenizer's directory, or in a file."""
    if name != "teacher" and not Path(name).is_dir():
        try:
            return read_text(Path(name), "set it to student, teacher, a file with a Jinja template, or a tokenizer's directory")
        except ConfigError as error:
            raise ModelError(f"data.template_from: {error}") from None
    from minidist.models.hub import load_tokenizer

    tokenizer = teacher.tokenizer if name == "teacher" else load_tokenizer(name, "data.template_from")
    if tokenizer.chat_template is None:
        raise ModelError(f"data.template_from is {name}, whose tokenizer has no chat template; set student, or another one")
    return tokenizer.chat_template


def read_student(config: StudentConfig, where: str = "student.model") -> ModelFacts:
    """The student, or another model of such a section, from its checkpoint or its architecture. `where`: key of its model."""
    import_less()
    from minidist.models.endings import stop_ids
    from minidist.models.hub import architecture, load_config, tokenizer_of

    trained, cut = (load_config(config, where) if config.model is not None else None), None
    if trained is not None and config.init is not None:
        cut = _cut(config, config.init, trained, where)
    tokenizer, stops = tokenizer_of(config, where), stop_ids(config.model, where)
    found = trained or architecture(config, tokenizer)
    return ModelFacts(where, tokenizer, found, config.lora, stops, cut)


def _cut(config: StudentConfig, init: InitConfig, trained: "PretrainedConfig", where: str) -> str:
    """Reduce the configuration of a checkpoint to the student's layers, in place. Returns the plan's line on them."""
    from minidist.models.layers import check_cut, cut_config, layer_count

    count, name = layer_count(trained), where.removesuffix(".model")
    check_cut(trained, init.layers, f"{name}.init.layers", trust_remote_code=config.trust_remote_code)
    cut_config(trained, init.layers)
    return f"{name}: layers {', '.join(map(str, init.layers))} of {config.model} ({count})"


def read_model(config: ModelConfig, where: str) -> ModelFacts:
    """A model from its checkpoint."""
    import_less()
    from minidist.models.endings import stop_ids
    from minidist.models.hub import load_config, tokenizer_of

    found = load_config(config, where)
    return ModelFacts(where, tokenizer_of(config, where), found, stops=stop_ids(config.model, where))


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
    "contexts": "prompts of the teacher were cut (data.truncate)",
}


def context_reader(teacher: TeacherConfig, data: RenderConfig, models: PairFacts) -> ContextReader | None:
    """Makes the prompts that the teacher reads (teacher.context), in its own chat template where it has one and
    data.template_from names no other; None where it reads the student's."""
    if teacher.context is None:
        return None
    tokenizer = copy(models.teacher.tokenizer)
    if data.template_from != "student" or tokenizer.chat_template is None:
        tokenizer.chat_template = rendering_tokenizer(data, models.student, models.teacher).chat_template
    return ContextReader(teacher.context, Renderer(tokenizer, data), models.teacher.context)


def longest_of_teacher(rows: Iterable[Prompt | Example], answer_tokens: int) -> int:
    """Most tokens of a row that a teacher reads in a context of its own, with an answer of `answer_tokens` after a prompt; 0
    where it reads the student's rows."""
    lengths = (
        len(row.teacher_tokens) + (len(row.tokens) - row.start if isinstance(row, Example) else answer_tokens)
        for row in rows
        if row.teacher_tokens is not None
    )
    return max(lengths, default=0)


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of all sources of a run, rendered alike.

    Args:
        renderer: text to tokens.
        config: the section `data`.
        pairs: models that must have all ids of the rows.
        context: makes the prompts that the teacher reads, or names the teacher of each row; None: one teacher reads the
            student's.
        answer_tokens: longest answer to a prompt, which the teacher's prompt leaves room for.
    """

    renderer: Renderer
    config: RenderConfig
    pairs: Sequence[PairFacts] = ()
    context: ContextReader | TeacherColumn | None = None
    answer_tokens: int = 0

    def prompts(self, name: str, source: SourceConfig, *, gold: bool = False) -> Rows[Prompt]:
        """`gold`: whether their answers are trained on."""
        limits = {} if self.context is None else {"context": self.context, "answer_tokens": self.answer_tokens}
        return self._rows(name, source, read_prompts, gold=gold, **limits)

    def examples(self, name: str, source: SourceConfig, *, max_tokens: int, scored: bool = False) -> Rows[Example]:
        """Rows to train on. `max_tokens`: of prompt and answer together. `scored`: by the teacher."""
        limits = {"context": self.context} if scored and self.context is not None else {}
        return self._rows(name, source, read_examples, max_tokens=max_tokens, **limits)

    def questions(self, name: str, source: QuestionsConfig, *, max_tokens: int) -> Rows[Question]:
        """Questions with a fixed set of answers."""
        return self._rows(name, source, read_questions, max_tokens=max_tokens)

    def _rows(self, name: str, source: SourceConfig, read: Callable[..., tuple[list[T], int]], **limits: Any) -> Rows[T]:
        before, cut_before = self.renderer.counts.copy(), self._contexts_cut
        found, skipped = read(source, self.renderer, max_prompt_tokens=self.config.max_prompt_tokens, **limits)
        for pair in self.pairs:
            pair.check_ids(f"{name}: {source.path}", used_ids(found))
            pair.check_teacher_ids(f"{name}: {source.path}", teacher_ids(found))
        counts = self.renderer.counts - before
        return Rows(name, source, found, skipped, counts + Counter(contexts=self._contexts_cut - cut_before))

    @property
    def _contexts_cut(self) -> int:
        return self.context.renderer.counts["truncated"] if isinstance(self.context, ContextReader) else 0
