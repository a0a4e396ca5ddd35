"""What the learner trains on, and what it returns."""

from dataclasses import dataclass, field

from minidist.types.arrays import Array
from minidist.types.rollouts import Rollout
from minidist.types.scores import Scores

MAIN = "main"
"""Name of the stream the student is distilled on, and of its objective."""


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


@dataclass(frozen=True)
class Row:
    """One sequence of a stream, already shifted by `data.batching.collate`.

    tokens [S]: the input of the model. outputs [L]: the positions whose outputs predict labels [L], so labels[l] is the token
    at position outputs[l] + 1. scores and credit describe the same L tokens. written_logprob [L] float32: log-probability of
    each, nats, under the student that wrote it, NaN where the student did not choose it; None where the text is of the current
    student, or of none. teacher: name of the teacher, of several, that the row is for; empty: one teacher, or all of them.

    Prompt "1+2=" with the answer "3<eos>": tokens [1, +, 2, =, 3, eos], outputs [3, 4], labels [3, eos].
    """

    tokens: Array
    outputs: Array
    labels: Array
    scores: Scores | None = None
    credit: Credit | None = None
    written_logprob: Array | None = None
    teacher: str = ""


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
class Measures:
    """Per-token figures of the rows of one stream, without training on them; L loss tokens in row order.

    row [L] int32: index of the row. student_logprob, teacher_logprob, reverse_kl, forward_kl [L] float64, nats.
    teacher_logprob is None if no teacher scored the stream. The divergences are None unless the payload is hidden states, the
    only payload that gives them exactly; where several teachers have different payloads, they are NaN at the tokens of others.
    """

    row: Array
    student_logprob: Array
    teacher_logprob: Array | None = None
    reverse_kl: Array | None = None
    forward_kl: Array | None = None


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
    measures: Measures | None = None


@dataclass(frozen=True)
class Update:
    """The result of an update: the version under which its weights are published, and its metrics.

    influence [B]: where a lesson measures it, how much each row's share of the update helps the student on held-out rows.
    """

    version: int
    metrics: dict[str, float]
    influence: Array | None = None
