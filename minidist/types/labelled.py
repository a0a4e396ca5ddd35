"""Rows of labelled tasks, what is learned from them, and what is predicted of them."""

from dataclasses import dataclass, field
from typing import Literal

from minidist.types.arrays import Array

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
