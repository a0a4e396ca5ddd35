"""The part of a teacher that lives in the learner's process: an output head, or a whole model that learns before each step of
the student."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from minidist.data.batching import MicroBatch
from minidist.learners.state import StateReader
from minidist.losses.chunked import Head

Visitor = Callable[[slice, Tensor], Tensor]
"""Receives a slice of a micro-batch's loss tokens and the student's log-probabilities of them [N, V], which carry no gradient;
returns figures of these tokens [N, F]. N may be 0."""


@dataclass(frozen=True)
class StudentText:
    """A micro-batch of the student's text. `visit` runs the student on it, passes every chunk of loss tokens to a visitor, and
    returns the figures of all [L, F]. Ranks share the student, so `visit` must be called once, in the order of the texts."""

    micro: MicroBatch
    visit: Callable[[Visitor], Tensor]


class ResidentTeacher(Protocol):
    """The teacher's part in the learner's process. It serves the main stream; other streams bring scores or need none.

    The defaults are those of a teacher that does not learn."""

    @property
    def head(self) -> Head | None:
        """The output head for the teacher's hidden states; None if the learner sees none."""
        return None

    @property
    def heads(self) -> Mapping[str, Head]:
        """The output heads, by the names that scores have for them (`TeacherScores.head`)."""
        return {} if self.head is None else {"": self.head}

    @property
    def names(self) -> Sequence[str]:
        """Names of several teachers, of which each row of the text has its own; none with one teacher."""
        return ()

    def learn(self, texts: Iterable[StudentText], *, tokens: int, step: int, steps: int) -> dict[str, float]:
        """One optimizer step of the teacher on the texts of all ranks, which hold `tokens` loss tokens together, before the
        student's optimizer step `step`, counted from 0, of `steps`. Returns metrics of the run. Raises DivergedError before
        the teacher's optimizer moves. Every rank holds the whole teacher, bit for bit the same."""
        return {}

    def hidden(self, micro: MicroBatch) -> Tensor | None:
        """Hidden states [L, E] at the micro-batch's loss tokens, without gradient, that the student learns from; None if a
        teacher elsewhere scores the text."""
        return None

    def state(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """The tensors that a checkpoint must hold: `weight` and the optimizer's moments, by parameter name."""
        return ()

    def restore(self, reader: StateReader) -> None:
        """Continue from the tensors that `state` gave."""

    def save(self, path: Path) -> None:
        """Write the trained tensors, if any, as safetensors into the directory `path`."""


@dataclass(frozen=True)
class FrozenTeacher(ResidentTeacher):
    """A teacher that does not learn. It scores in other processes, if at all; the learner holds at most its output head."""

    head: Head | None = None


class SeveralTeachers(ResidentTeacher):
    """Several teachers that do not learn.

    Args:
        heads: those of teachers that give hidden states, by name.
        names: those of all teachers, where each row of the text has its own; none where they score all text together.
    """

    def __init__(self, heads: Mapping[str, Head], names: Sequence[str] = ()) -> None:
        self._heads = heads
        self._names = names

    @property
    def heads(self) -> Mapping[str, Head]:
        return self._heads

    @property
    def names(self) -> Sequence[str]:
        return self._names
