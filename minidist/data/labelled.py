"""Rows of labelled tasks: read once as text, and encoded as each model reads them."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from minidist.config.data import RenderConfig, SourceConfig
from minidist.config.task import ChoicesTask, ClassesTask, MaskedTask, ScoreTask, TaskSection, TokensTask
from minidist.data.encoding import Encoder
from minidist.data.exchanges import Record
from minidist.data.rendering import Renderer
from minidist.data.sources import check_source, read_rows, usable_rows
from minidist.data.templates import BadRow, Template
from minidist.data.values import ClassNumber, as_text
from minidist.errors import ConfigError, DataError
from minidist.types import Array, LabelledRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_SHORTEST = 8


@dataclass(frozen=True)
class LabelledText:
    """A row of a labelled task as text. `answer`: of token tasks. `label`: class number or score; 0 where the text is all."""

    index: int
    text: str
    pair: str | None = None
    label: float = 0.0
    answer: str | None = None


def read_labelled(task: TaskSection, source: SourceConfig) -> tuple[list[LabelledText], int]:
    """The rows of a source, and the number of rows skipped. Raises DataError for rows that the source refuses."""
    reader = _Reader(task)
    return usable_rows(source, read_rows(_bare(source), reader.columns), reader.read)


def check_labelled(task: TaskSection, source: SourceConfig) -> None:
    """Raise DataError unless the data can be opened and has the columns of the task's texts."""
    check_source(_bare(source), _Reader(task).columns)


def _bare(source: SourceConfig) -> SourceConfig:
    """The source without a prompt of its own, in place of which the task has templates."""
    return source.model_copy(update={"prompt": ""})


@dataclass(frozen=True)
class _Reader:
    """Fills the templates of a task."""

    task: TaskSection
    templates: dict[str, Template] = field(init=False)

    def __post_init__(self) -> None:
        named = {name: getattr(self.task, name, None) for name in ("text", "pair", "prompt", "answer")}
        found = {name: Template(text, f"task.{name}") for name, text in named.items() if text is not None}
        for name, template in found.items():
            self._check_columns(name, template)
        object.__setattr__(self, "templates", found)

    @property
    def columns(self) -> list[Template]:
        """The templates, whose columns a source must have."""
        return list(self.templates.values())

    def _check_columns(self, name: str, template: Template) -> None:
        """Raise ConfigError for a text that is the same in all rows, or that gives the label away."""
        if not template.columns and name in ("text", "prompt"):
            alike = f"task.{name} uses no column, so that all rows are alike"
            raise ConfigError(f"{alike}; write the name of a column as in {{{{ text }}}}")
        if (label := getattr(self.task, "label", None)) in template.columns:
            raise ConfigError(f"task.{name} shows the column {label!r}, which is the label; leave it out of the text")

    def read(self, index: int, row: Record) -> LabelledText:
        """A row as text. Raises BadRow."""
        filled = {name: template.fill(row) for name, template in self.templates.items()}
        text = filled.get("text", filled.get("prompt", ""))
        for name, written in filled.items():
            if not written.strip():
                raise BadRow(f"task.{name} is empty")
        return LabelledText(index, text, filled.get("pair"), self._label(row), filled.get("answer"))

    def _label(self, row: Record) -> float:
        task = self.task
        if not isinstance(task, ClassesTask | ScoreTask | ChoicesTask):
            return 0.0
        if task.label not in row:
            raise BadRow(f"it has no column {task.label!r}, which task.label names")
        written = _written(row[task.label], task.label)
        if isinstance(task, ScoreTask):
            return _score(written, task)
        if isinstance(row[task.label], ClassNumber):
            written = _name_of(row[task.label], task)
        if written in task.names:
            return task.names.index(written)
        numbered = written.isdecimal() and not any(name.isdecimal() for name in task.names)
        if not numbered or int(written) >= len(task.names):
            unlabelled = "; a label of -1 means that the row has none: use rows with labels" if written == "-1" else ""
            known = ", ".join(task.names)
            raise BadRow(f"its {task.label} is {written!r}, neither a name nor a number of task.names ({known}){unlabelled}")
        return task.names.index(task.numbered_names[int(written)])


def _written(value: Any, column: str) -> str:
    """The text of a label. Raises BadRow where the row has none."""
    written = as_text(value)
    if written is None or not written.strip():
        found = "empty" if written is not None else "a list" if isinstance(value, list) else "a mapping or bytes"
        raise BadRow(f"its {column} is {found}; expected one label")
    return written.strip()


def _name_of(number: ClassNumber, task: ClassesTask | ChoicesTask) -> str:
    """The name of the task's class that a data set with names of its own means, or the number where the names may differ: of a
    row without a class, and of a GLUE task, whose numbers have one meaning. Raises BadRow."""
    name, unnamed = number.name, number.names == tuple(map(str, range(len(task.names))))
    if name is None or unnamed or name in task.names:
        return str(number) if name is None or unnamed else name
    if task.glue is None or set(number.names) & set(task.names):
        named = f"its {task.label} is class {int(number)}, which the data set names {name!r}"
        raise BadRow(f"{named}; set task.names to the names of the data set ({', '.join(number.names)})")
    return str(number)


def _score(written: str, task: ScoreTask) -> float:
    """The score of a row. Raises BadRow."""
    try:
        value = float(written)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise BadRow(f"its {task.label} is {written!r}, not a number")
    if task.range is not None and not task.range[0] <= value <= task.range[1]:
        low, high = task.range
        raise BadRow(f"its {task.label} is {written}, outside task.range, {low:g} to {high:g}; use rows with labels")
    return value


@dataclass(frozen=True)
class RowEncoder:
    """Texts as one model reads them.

    Args:
        task: what is predicted.
        tokenizer: the model's.
        max_tokens: longest row; the longer text of a pair is cut first, prompts of choices at their beginning.
        two_sided: the model has an encoder and a decoder: an answer choice is a text of its own, with its end.
    """

    task: TaskSection
    tokenizer: "PreTrainedTokenizerBase"
    max_tokens: int
    two_sided: bool = False
    counts: Counter[str] = field(default_factory=Counter, compare=False)
    """Rows that were cut to max_tokens, and rows of which no label was left."""

    def rows(self, texts: Sequence[LabelledText]) -> list[LabelledRow]:
        """The rows, in order; of plain text, one for each piece. Raises DataError for a text that does not fit."""
        if isinstance(self.task, ChoicesTask):
            return self._choices(texts, self.task)
        if isinstance(self.task, TokensTask):
            return self._answers(texts)
        if isinstance(self.task, MaskedTask):
            return self._pieces(texts)
        return self._labelled(texts)

    def _labelled(self, texts: Sequence[LabelledText]) -> list[LabelledRow]:
        if not texts:
            return []
        pairs = None if texts[0].pair is None else [text.pair or "" for text in texts]
        tokenizer: Any = self.tokenizer
        added = tokenizer.num_special_tokens_to_add(pair=pairs is not None)
        if self.max_tokens < added + (1 if pairs is None else 2):
            room = f"data.max_tokens {self.max_tokens} leaves no room for text beside the {added} special tokens of a row"
            raise ConfigError(f"{room}; raise it")
        found = tokenizer([text.text for text in texts], pairs, verbose=False)
        long = [number for number, ids in enumerate(found["input_ids"]) if len(ids) > self.max_tokens]
        self.counts["cut"] += len(long)
        if long:  # only the rows that are cut are encoded again
            firsts, seconds = [texts[n].text for n in long], None if pairs is None else [pairs[n] for n in long]
            shorter = tokenizer(firsts, seconds, truncation=True, max_length=self.max_tokens)
            for key, cut in shorter.items():
                for number, values in zip(long, cut, strict=True):
                    found[key][number] = values
        for text, ids in zip(texts, found["input_ids"], strict=True):
            if len(ids) <= added:
                raise DataError(f"row {text.index}: the tokenizer finds no token in its text {text.text!r}; leave the row out")
        segments = found.get("token_type_ids") or [None] * len(texts)
        return [
            LabelledRow(text.index, _ids(ids), text.label, None if parts is None else _ids(parts))
            for text, ids, parts in zip(texts, found["input_ids"], segments, strict=True)
        ]

    def _choices(self, texts: Sequence[LabelledText], task: ChoicesTask) -> list[LabelledRow]:
        encoder, tokenizer = Encoder(self.tokenizer), self.tokenizer
        end = [] if tokenizer.eos_token_id is None else [int(str(tokenizer.eos_token_id))]
        found = []
        for text in texts:
            prompt = encoder.begun(encoder.bare(text.text))
            if self.two_sided:
                prompt, choices = prompt + end, [encoder.bare(choice.strip()) + end for choice in task.choices]
            else:
                choices = [encoder.continued(prompt, text.text, choice, begun=True) for choice in task.choices]
            self._check_choices(text, choices)
            room = self.max_tokens - max(map(len, choices)) * (not self.two_sided)
            if room < 1 or not prompt:
                raise DataError(f"row {text.index} has no room for its prompt beside the answer choices; raise data.max_tokens")
            self.counts["cut"] += len(prompt) > room
            kept = prompt[max(0, len(prompt) - room) :]
            found.append(LabelledRow(text.index, _ids(kept), text.label, choices=tuple(map(_ids, choices))))
        return found

    def _check_choices(self, text: LabelledText, choices: Sequence[Sequence[int]]) -> None:
        """Raise DataError unless each choice has tokens of its own."""
        bare = [tuple(choice) for choice in choices]
        if () in bare:
            raise DataError(f"row {text.index}: choice {bare.index(())} of task.choices has no token; give each an answer")
        if len(set(bare)) < len(bare):
            second = next(number for number, choice in enumerate(bare) if choice in bare[:number])
            alike = f"choices {bare.index(bare[second])} and {second} of task.choices are the same to the tokenizer"
            raise DataError(f"row {text.index}: {alike}; give answers that it tells apart")

    def _answers(self, texts: Sequence[LabelledText]) -> list[LabelledRow]:
        renderer, found = Renderer(self.tokenizer, RenderConfig()), []
        for text in texts:
            example = renderer.example(text.text, text.answer or "")
            labelled = np.zeros(len(example.tokens), dtype=bool)
            labelled[example.start :] = True if example.labelled is None else example.labelled
            targets = np.where(labelled[1:], example.tokens[1:], -1).astype(np.int32)
            self.counts["cut"] += len(example.tokens) > self.max_tokens
            tokens, targets = example.tokens[: self.max_tokens], np.append(targets, np.int32(-1))[: self.max_tokens]
            labelled_left = bool((targets >= 0).any())  # else the prompt alone is longer than a row
            self.counts["left out"] += not labelled_left
            if labelled_left:
                found.append(LabelledRow(text.index, tokens, targets=targets))
        return found

    def _pieces(self, texts: Sequence[LabelledText]) -> list[LabelledRow]:
        tokenizer: Any = self.tokenizer
        options = {"truncation": True, "max_length": self.max_tokens, "return_overflowing_tokens": True}
        found = tokenizer([text.text for text in texts], **options)
        rows = zip(found["overflow_to_sample_mapping"], found["input_ids"], strict=True)
        # A last piece of a few tokens is no text.
        return [
            LabelledRow(texts[number].index, _ids(ids)) for number, ids in rows if len(ids) >= min(_SHORTEST, self.max_tokens)
        ]


@dataclass(frozen=True)
class Masker:
    """Hides tokens of a row for masked language modelling: of the predicted ones 80 % become the mask, 10 % a random token, and
    10 % stay (Devlin et al., BERT, arXiv:1810.04805).

    Args:
        share: of the tokens that are predicted; special tokens never are.
        mask: id of the mask token.
        special: ids of all special tokens.
        vocabulary: number of ids to draw replacements from.
        seed: a row's draw is a function of the seed, the step, and the row.
    """

    share: float
    mask: int
    special: frozenset[int]
    vocabulary: int
    seed: int

    @classmethod
    def of(cls, task: MaskedTask, tokenizer: "PreTrainedTokenizerBase", seed: int) -> "Masker":
        special = frozenset(int(str(index)) for index in tokenizer.all_special_ids)
        return cls(task.share, int(str(tokenizer.mask_token_id)), special, len(tokenizer), seed)

    def __call__(self, row: LabelledRow, step: int) -> LabelledRow:
        """The row with hidden tokens, and the tokens under them as targets; at least one."""
        rng = np.random.default_rng([self.seed, step, row.index, int(row.tokens.sum()) % (1 << 31)])
        plain = np.array([index not in self.special for index in row.tokens.tolist()])
        drawn = (rng.random(len(row.tokens)) < self.share) & plain
        if not drawn.any():
            drawn[rng.choice(np.flatnonzero(plain))] = True
        kind = rng.random(len(row.tokens))
        hidden = np.where(kind < 0.8, self.mask, np.where(kind < 0.9, rng.integers(0, self.vocabulary, len(kind)), row.tokens))
        tokens = np.where(drawn, hidden, row.tokens).astype(np.int32)
        return replace(row, tokens=tokens, targets=np.where(drawn, row.tokens, -1).astype(np.int32))


def split_feedback(texts: Sequence[LabelledText], share: float, *, seed: int, classes: bool) -> tuple[list[int], list[int]]:
    """Positions of the rows to train on and of those held out, each in order: no text is on both sides.

    Args:
        texts: the training rows.
        share: of the rows that is held out, within one row of each class's share; of equal texts, all or none.
        seed: of the choice.
        classes: labels are classes, each of which gives its share.
    """
    groups: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for position, text in enumerate(texts):
        groups[text.text, text.pair].append(position)
    by_class: dict[float, list[list[int]]] = defaultdict(list)
    for positions in groups.values():
        by_class[texts[positions[0]].label if classes else 0.0].append(positions)
    held: list[int] = []
    rng = np.random.default_rng([seed, 3])
    for label in sorted(by_class):
        members = by_class[label]
        wanted, taken = round(share * sum(map(len, members))), 0
        for number in rng.permutation(len(members))[: len(members) - 1]:  # one stays to train on
            if taken < max(1, wanted):
                held += members[number]
                taken += len(members[number])
    chosen = set(held)
    return [position for position in range(len(texts)) if position not in chosen], sorted(chosen)


def _ids(ids: Sequence[int]) -> Array:
    return np.asarray(ids, dtype=np.int32)
