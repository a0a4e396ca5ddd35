"""The data that roles exchange: frozen dataclasses of numpy arrays, which pickle and which Ray shares without copying.

Index t of every per-token array describes the t-th *generated* token. Axes: B rows, S positions of a sequence, P prompt tokens,
T generated tokens, L loss tokens of a row, K listed tokens, D hidden size, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, np.dtype[Any]]

MAIN = "main"
"""Name of the stream the student is distilled on, and of its objective."""

PROBE_TOKENS = 32
"""Longest sequence of a `Probe`."""


class Payload(StrEnum):
    """What a teacher returns for each token, from the poorest payload to the richest; see `TeacherScores`."""

    SAMPLED = "sampled"
    TOP_K = "top_k"
    HIDDEN = "hidden"

    def serves(self, needed: str) -> bool:
        """Whether an objective that needs `needed` can use this payload: a richer payload serves every poorer need.

        >>> Payload.HIDDEN.serves("top_k"), Payload.SAMPLED.serves("top_k")
        (True, False)
        """
        order = list(Payload)
        return order.index(self) >= order.index(Payload(needed))


class Finish(StrEnum):
    """Why a rollout ended: with an id that ends answers, or at the token limit."""

    STOP = "stop"
    LENGTH = "length"


class Writer(StrEnum):
    """The author of a rollout's text."""

    STUDENT = "student"
    TEACHER = "teacher"
    DATASET = "dataset"


class Vocabulary(int):
    """The ids over which the softmax of student and teacher is taken, as an int: all ids below it but the `absent` ones.

    An id is absent where only one of the models has it, or neither has. It is never sampled and has no probability. A plain int
    stands for a vocabulary without absent ids.

    >>> Vocabulary(5, [3]).ids, Vocabulary(5, [3]) == 5
    ([0, 1, 2, 4], True)
    """

    absent: tuple[int, ...]

    def __new__(cls, width: int, absent: Iterable[int] = ()) -> "Vocabulary":
        made = super().__new__(cls, width)
        made.absent = tuple(absent)
        return made

    def __getnewargs__(self) -> Any:
        return int(self), self.absent

    @classmethod
    def of(cls, width: int) -> "Vocabulary":
        """The vocabulary that an int is, or stands for."""
        return width if isinstance(width, cls) else cls(width)

    @property
    def count(self) -> int:
        """Number of the ids."""
        return int(self) - len(self.absent)

    @property
    def ids(self) -> list[int]:
        """The ids, in rising order."""
        absent = set(self.absent)
        return [index for index in range(self) if index not in absent]


def allowed_ids(vocabulary: int | None, width: int) -> list[int] | None:
    """The ids that a model with `width` classes may write; None: all of them."""
    if vocabulary is None:
        return None
    ids = Vocabulary.of(vocabulary).ids
    return ids if len(ids) < width else None


@dataclass(frozen=True)
class RankGroup:
    """One process of a group that shares a model: rank `rank` of `size`.

    meeting: the init_method of torch.distributed, file:// on one machine, tcp:// on several.
    """

    rank: int = 0
    size: int = 1
    meeting: str = ""


@dataclass(frozen=True)
class Prompt:
    """A question to the student.

    row: row of the data source, from which the seeds of the samples are derived. tokens [P] int32: the input of the model.
    text, answer: for people and graders. gold: tokens of the gold answer, if the run trains on them. references: all gold
    answers, if the source lists several; `answer` is the first. teacher_tokens [P'] int32, teacher_text: the prompt that the
    teacher reads in place of this one (teacher.context), as ids and for people; None: the teacher reads this one.
    """

    row: int
    tokens: Array
    text: str
    answer: str | None = None
    gold: Array | None = None
    references: tuple[str, ...] = ()
    teacher_tokens: Array | None = None
    teacher_text: str | None = None

    @property
    def for_teacher(self) -> "Prompt":
        """The prompt as the teacher reads it: the only place where one becomes the other."""
        if self.teacher_tokens is None:
            return self
        return replace(self, tokens=self.teacher_tokens, text=self.teacher_text or "", teacher_tokens=None, teacher_text=None)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn: these fields, the prompt and the weights decide every answer.

    max_new_tokens: longest answer, in tokens, end-of-sequence token included. samples: answers per prompt. temperature: divides
    the logits; 0 is greedy. top_p: applied after the temperature; the fewest likeliest tokens whose probabilities add up to
    top_p stay. seed: each sample's seed is derived from this seed, the prompt's row and the sample's number.
    no_repeat_ngram_size: no n-gram of this many tokens occurs twice, prompt included; None: no restriction.
    """

    max_new_tokens: int
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    no_repeat_ngram_size: int | None = None

    @property
    def truncated(self) -> bool:
        """Whether tokens outside the nucleus of top_p are never sampled. Greedy decoding has none: its log-probabilities are
        those of the whole distribution at temperature 1."""
        return self.temperature > 0 and self.top_p < 1

    @property
    def own(self) -> bool:
        """Whether answers are drawn from the model's own distribution, as divergences need them."""
        return self.temperature == 1 and not self.truncated

    @property
    def processed(self) -> tuple[float, float]:
        """Temperature and top_p of the distribution whose log-probabilities an answer has, as `Learner.measure` takes them."""
        return (self.temperature, self.top_p) if self.temperature > 0 else (1.0, 1.0)

    def jobs(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, int]]:
        """Prompt and sample number of each rollout of a call, in the order in which the call returns them."""
        return [(prompt, number) for prompt in prompts for number in range(self.samples)]


@dataclass(frozen=True)
class Rollout:
    """One answer. Token ids are authoritative; `text` is for people.

    tokens [T] int32, with the end-of-sequence token if the answer ended with it. logprobs [T] float32, nats, under the sampled
    distribution (temperature and truncation applied); None if the text was not sampled. versions [T] int32, the published
    weights that each token came from, -1 for text of a data set. coins [T] bool, in teacher-mixed sampling: whether the teacher
    chose the token; `logprobs` are then the student's, and NaN at the teacher's tokens. labelled [T] bool: which tokens of
    given text are trained on; None: all.

    Prompt "1+2=" answered "3<eos>" by the student's weights of version 7: tokens [3, eos], logprobs [-0.1, -0.02],
    versions [7, 7], finish STOP.
    """

    prompt: Prompt
    tokens: Array
    logprobs: Array | None
    versions: Array
    finish: Finish
    sample: int = 0
    text: str = ""
    writer: Writer = Writer.STUDENT
    coins: Array | None = None
    labelled: Array | None = None

    @classmethod
    def written(
        cls, prompt: Prompt, tokens: ArrayLike, logprobs: ArrayLike | None, *, version: int, stopped: bool, **fields: Any
    ) -> "Rollout":
        """A rollout whose tokens [T] all come from one version of the weights.

        stopped: whether it ended with an id that ends answers, not at the token limit. fields: other fields, by name.
        """
        ids = np.asarray(tokens, dtype=np.int32)
        return cls(
            prompt=prompt,
            tokens=ids,
            logprobs=None if logprobs is None else np.asarray(logprobs, dtype=np.float32),
            versions=np.full(len(ids), version, dtype=np.int32),
            finish=Finish.STOP if stopped else Finish.LENGTH,
            **fields,
        )

    @property
    def for_teacher(self) -> "Rollout":
        """The same answer after the prompt that the teacher reads."""
        return self if self.prompt.teacher_tokens is None else replace(self, prompt=self.prompt.for_teacher)

    def answering(self, prompt: Prompt) -> "Rollout":
        """The answer after another prompt: the student's, where a teacher wrote the answer after its own."""
        return self if self.prompt is prompt else replace(self, prompt=prompt)


@dataclass(frozen=True)
class Reply:
    """The answer of a model to one call of a program of several calls; see `protocols.Ask`.

    text: without the token that ended it. tokens: generated, end-of-sequence token included.
    """

    text: str
    tokens: int
    finish: Finish


@dataclass(frozen=True)
class TeacherScores:
    """The teacher's scores of the T generated tokens of a rollout, in one of three payloads.

    SAMPLED: `logprobs` [T], nats, of the generated tokens. TOP_K: also `top_ids` and `top_logprobs` [T, K], in falling order;
    the tail has the remaining probability. HIDDEN: `hidden` [T, D], the states before the output head. The learner applies the
    teacher's head to them, which gives the exact distribution over the vocabulary at a fraction of its bytes. bfloat16 travels
    as uint16; `hidden_dtype` names the real type.
    """

    payload: Payload
    logprobs: Array | None = None
    top_ids: Array | None = None
    top_logprobs: Array | None = None
    hidden: Array | None = None
    hidden_dtype: str = "float32"


@dataclass(frozen=True)
class Credit:
    """The terms of a policy gradient that stay fixed while the learner trains on a collection; all [L] float32.

    old_logprob: nats, under the student that wrote the text. advantage: of the token. weight: importance weight of the token,
    its probability under the student over its probability when sampled. reach: importance weight of the prefix before the
    token, 1 if prefixes are not weighted.
    """

    old_logprob: Array
    advantage: Array
    weight: Array
    reach: Array


TaskKind = Literal["classes", "score", "choices", "tokens", "masked"]
"""How the outputs of a model are read: a head of classes, a head of one score, the likelihood of each answer after a prompt,
the next token, or the token under a mask."""


@dataclass(frozen=True)
class TaskFacts:
    """What a model must know of a labelled task.

    Args:
        kind: how its outputs are read.
        names: of the classes, in the order of their numbers; empty where there are none.
        normalise: choices: divide the log-probability of an answer by its tokens.
    """

    kind: TaskKind
    names: tuple[str, ...] = ()
    normalise: bool = True


@dataclass(frozen=True)
class LabelledRow:
    """A row of a labelled task as one model reads it.

    Args:
        index: number of the row in its source.
        tokens: ids of the text with its special tokens, int32 [S]; of the prompt, where answer choices are scored.
        label: class number, or score (regression); 0 where `targets` are the labels.
        segments: 0 for the first text of a pair and 1 for the second, int32 [S]; None where the tokenizer gives none.
        choices: ids of each answer choice as it follows the prompt, int32 [T] each; empty where a head gives the classes.
        targets: the id to predict at each position, int32 [S], -1 where no loss is taken: the next token (decoders), or the
            token under the mask. None: the label is the target.
    """

    index: int
    tokens: Array
    label: float = 0.0
    segments: Array | None = None
    choices: tuple[Array, ...] = ()
    targets: Array | None = None


@dataclass(frozen=True)
class Exercise:
    """What student and teacher learn from in one step of `minidist teach`.

    Args:
        step: the optimizer step, from 0.
        student: training rows as the student reads them.
        teacher: the same rows as the teacher reads them; empty without a teacher.
        feedback: held-out rows as the student reads them, on which teaching is judged; empty where no lesson asks for them.
        metrics: figures of the draw.
    """

    step: int
    student: tuple[LabelledRow, ...]
    teacher: tuple[LabelledRow, ...] = ()
    feedback: tuple[LabelledRow, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """What a model predicts of labelled rows, without training. N: predictions, one of each row or several (tokens).

    Args:
        predicted: the likeliest class, or the score, [N].
        labels: class or score, [N].
        loss: mean loss of each row's predictions, [B]: nats, or squared error (regression).
    """

    predicted: Array
    labels: Array
    loss: Array


@dataclass(frozen=True)
class Row:
    """One sequence of a stream, already shifted by `data.batching.collate`.

    tokens [S]: the input of the model. outputs [L]: the positions whose outputs predict labels [L], so labels[l] is the token
    at position outputs[l] + 1. scores and credit describe the same L tokens. written_logprob [L] float32: log-probability of
    each, nats, under the student that wrote it, NaN where the student did not choose it; None where the text is of the current
    student, or of none.

    Prompt "1+2=" with the answer "3<eos>": tokens [1, +, 2, =, 3, eos], outputs [3, 4], labels [3, eos].
    """

    tokens: Array
    outputs: Array
    labels: Array
    scores: TeacherScores | None = None
    credit: Credit | None = None
    written_logprob: Array | None = None


@dataclass(frozen=True)
class Stream:
    """Rows that share an objective. The stream adds weight * (sum over its loss tokens) / loss_tokens to the loss of a step.

    loss_tokens: labels of all ranks and micro-batches, counted before the first backward pass.

    Two rows with 3 and 5 labels, weight 0.5, token losses that sum to 4 nats: the stream adds 0.5 * 4 / 8 = 0.25, whether one
    rank holds both rows or each of two ranks holds one.
    """

    name: str
    rows: tuple[Row, ...]
    objective: str
    loss_tokens: int
    weight: float = 1.0


@dataclass(frozen=True)
class Batch:
    """One collection, as the streams of each optimizer step that the learner takes on it.

    main: the main stream before it is cut into minibatches, row i from rollouts[i]; None when nothing was collected.
    measures: the figures of `main` under the student that wrote it, where the objective needs them.

    A collection of 4 rollouts on which the objective takes 2 passes in 2 minibatches each, with one regulariser, has
    `steps` of 4 pairs of streams; the first stream of each pair has 2 rows.
    """

    step: int
    steps: tuple[tuple[Stream, ...], ...]
    rollouts: tuple[Rollout, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    main: Stream | None = None
    measures: "Measures | None" = None


@dataclass(frozen=True)
class Update:
    """The result of an update: the version under which its weights are published, and its metrics.

    influence [B]: where a lesson measures it, how much each row's share of the update helps the student on held-out rows.
    """

    version: int
    metrics: dict[str, float]
    influence: Array | None = None


@dataclass(frozen=True)
class Measures:
    """Per-token figures of the rows of one stream, without training on them; L loss tokens in row order.

    row [L] int32: index of the row. student_logprob, teacher_logprob, reverse_kl, forward_kl [L] float64, nats.
    teacher_logprob is None if no teacher scored the stream. The divergences are None unless the payload is hidden states, the
    only payload that gives them exactly.
    """

    row: Array
    student_logprob: Array
    teacher_logprob: Array | None = None
    reverse_kl: Array | None = None
    forward_kl: Array | None = None


@dataclass(frozen=True)
class Adaptation:
    """What low-rank adapters change: a checkpoint on disk, whose other weights stay as they are.

    base: directory or hub name of the checkpoint. dtype: the precision of the adapted model. scale: alpha / rank. files: the
    name of each tensor of the adapted model to its name in the checkpoint's files. transposed: weights stored as [in, out].
    """

    base: str
    dtype: str
    scale: float
    files: dict[str, str]
    transposed: frozenset[str]


@dataclass(frozen=True)
class Weights:
    """A model's weights for an engine, by names in the checkpoint; bfloat16 travels as uint16, and `dtypes` names the type.

    adaptation: not None where `arrays` are low-rank adapters alone: a weight changes by scale * B A, and A [R, in] and
    B [out, R] have its name with the endings of `models.adapted`.
    """

    version: int
    arrays: dict[str, Array]
    dtypes: dict[str, str]
    adaptation: Adaptation | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays; an array of two names counts once."""
        return sum({id(array): array.nbytes for array in self.arrays.values()}.values())


@dataclass(frozen=True)
class Probe:
    """Token sequences and the learner's log-probabilities of them, which an engine must reproduce after a weight sync.

    tokens [B, S] int32; logprobs [B, S-1] float32, nats: entry s is the log-probability of tokens[:, s + 1].
    """

    tokens: Array
    logprobs: Array
