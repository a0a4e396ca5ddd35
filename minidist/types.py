"""What travels between the roles: frozen dataclasses of numpy arrays that pickle, and that Ray shares without copying.

Index t of every per-token array describes the t-th *generated* token. Axes: B rows, S positions of a sequence,
T generated tokens, L loss tokens, K listed tokens, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, np.dtype[Any]]

MAIN = "main"
"""Name of the stream the student is distilled on, and of its objective."""

PROBE_TOKENS = 32
"""Longest sequence of a `Probe`."""


class Payload(StrEnum):
    """What a teacher returns for each token, from the least to the most: see `TeacherScores`."""

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
    """Why a rollout ended: it wrote its end-of-sequence token, or it reached the token limit."""

    STOP = "stop"
    LENGTH = "length"


class Writer(StrEnum):
    """Whose text a rollout is."""

    STUDENT = "student"
    TEACHER = "teacher"
    DATASET = "dataset"


@dataclass(frozen=True)
class RankGroup:
    """The place of one process among those that share a model: `rank` of `size`, which find each other at `meeting`.

    meeting: an init_method of torch.distributed, file:// on one machine, tcp:// on several.
    """

    rank: int = 0
    size: int = 1
    meeting: str = ""


@dataclass(frozen=True)
class Prompt:
    """A question to the student. `tokens` [P] are what the model sees; `text` and `answer` are for people and graders.

    `row` is the row of its data source, and the seed of its samples is derived from it. `gold` are the tokens of the gold
    answer, where the run trains on them. `references` are all gold answers, where the source lists several; `answer` is the
    first.
    """

    row: int
    tokens: Array
    text: str
    answer: str | None = None
    gold: Array | None = None
    references: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn. Together with the prompt and the weights, these fields decide every answer.

    samples: answers a prompt. max_new_tokens: tokens of an answer at most, end-of-sequence token included. temperature: 0 is
    greedy. top_p: after the temperature, the fewest likeliest tokens whose probabilities reach it. seed: each sample draws with
    a seed derived from this seed, its prompt's row and its number. no_repeat_ngram_size: no n-gram of this many tokens occurs
    twice, prompt included; None: any may.
    """

    max_new_tokens: int
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    no_repeat_ngram_size: int | None = None

    def jobs(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, int]]:
        """Prompt and sample number of each rollout of a call, in the order in which the call returns them."""
        return [(prompt, number) for prompt in prompts for number in range(self.samples)]


@dataclass(frozen=True)
class Rollout:
    """One answer. Token ids are the truth; `text` is for people.

    tokens [T] int32, end-of-sequence token included when it was written. logprobs [T] float32, nats, of the distribution
    that was sampled (temperature and truncation applied); None when nobody sampled it. versions [T] int32, the published
    weights each token came from. coins [T] bool, in teacher-mixed sampling: whether the teacher chose the token; `logprobs`
    are then the student's of its own tokens, and NaN at the teacher's.
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

    @classmethod
    def written(
        cls, prompt: Prompt, tokens: ArrayLike, logprobs: ArrayLike | None, *, version: int, stopped: bool, **fields: Any
    ) -> "Rollout":
        """A rollout whose tokens [T] all come from one version of the weights; `fields`: any other field.

        stopped: whether the end-of-sequence token ended the rollout; else the token limit did.
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


@dataclass(frozen=True)
class TeacherScores:
    """What the teacher says of T given tokens, in one of three payloads.

    SAMPLED: `logprobs` [T] nats of the given tokens. TOP_K: also `top_ids` [T, K] and `top_logprobs` [T, K], in falling
    order; the tail is what is left. HIDDEN: `hidden` [T, D], the states before the output head, to which the learner
    applies the teacher's head: the exact full vocabulary at a fraction of its bytes. bfloat16 travels as uint16, and
    `hidden_dtype` says so.
    """

    payload: Payload
    logprobs: Array | None = None
    top_ids: Array | None = None
    top_logprobs: Array | None = None
    hidden: Array | None = None
    hidden_dtype: str = "float32"


@dataclass(frozen=True)
class TeacherHead:
    """A model's output head: logits = cap(scale * (hidden @ weight.T + bias))[:, :vocabulary].

    weight [V, D], bias [V] or None, cap(x) = soft_cap * tanh(x / soft_cap) when `soft_cap` is set. Loaded once per
    learner from the checkpoint. The vocabulary is sliced before the softmax, so padded ids take no probability.
    """

    weight: Array
    bias: Array | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class Credit:
    """What a policy gradient holds fixed while it learns from a collection, for each of L loss tokens; all [L] float32.

    old_logprob: nats, of the student that wrote. advantage: what the token earned. weight: its importance weight, the student's
    probability of it over the one it was sampled with. reach: that of the prefix before it, where prefixes are weighed, else 1.
    """

    old_logprob: Array
    advantage: Array
    weight: Array
    reach: Array


@dataclass(frozen=True)
class Row:
    """One sequence of a stream, already shifted by `data.batching.collate`.

    tokens [S]: what the model reads. outputs [L]: the positions whose output predicts labels [L], so
    outputs[l] + 1 is where labels[l] stands. scores and credit describe the same L tokens.
    """

    tokens: Array
    outputs: Array
    labels: Array
    scores: TeacherScores | None = None
    credit: Credit | None = None


@dataclass(frozen=True)
class Stream:
    """Rows that share an objective. Its term of the step's loss is weight * (sum over loss tokens) / loss_tokens.

    `loss_tokens` counts the labels of all ranks and micro-batches, and is taken before the first backward.
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
    """What an update did: the published version it leads to, and its figures."""

    version: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Measures:
    """Per-token figures of the rows of one stream, without training on them; L loss tokens in row order.

    row [L] int32: index of the row. student_logprob, teacher_logprob, reverse_kl, forward_kl [L] float64, nats.
    teacher_logprob is None when no teacher scored the stream; the divergences are None unless it gave hidden states, from
    which alone they are exact.
    """

    row: Array
    student_logprob: Array
    teacher_logprob: Array | None = None
    reverse_kl: Array | None = None
    forward_kl: Array | None = None


@dataclass(frozen=True)
class Weights:
    """A model's weights on their way to an engine: checkpoint names to arrays, bfloat16 as uint16 with its tag."""

    version: int
    arrays: dict[str, Array]
    dtypes: dict[str, str]


@dataclass(frozen=True)
class Probe:
    """Token sequences with the learner's log-probabilities of them: what an engine must reproduce after a sync.

    tokens [B, S] int32; logprobs [B, S-1] float32, nats: entry s is the log-probability of tokens[:, s + 1].
    """

    tokens: Array
    logprobs: Array
